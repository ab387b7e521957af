r"""Compares orders of norm and activation in a wide residual network on CIFAR-10.

python bin/experiment.py --config=configs/experiments/network_order.py \
    --workdir=runs/network_order --jobs=2

WRN-10-1 with four groups, images at 16 x 16 pixels, plain DP-SGD in all arms, so that
only the order differs; each arm's learning rate is tuned on validation examples. It
takes about half an hour on two cores.
"""

from dpmix_tf.experiments import default_experiment
from dpmix_tf.training import default_config

ORDERS = ("activation_first", "shortcut_norm_first", "norm_first")


def get_config():
    """Returns the experiment's configuration."""
    base = default_config()
    base.data.update(name="cifar10", image_size=16, train_examples=20_000)
    base.network = {
        "name": "wide_resnet",
        "depth": 10,
        "width": 1,
        "groups": 4,
        "order": "activation_first",
    }
    base.views.update(base=1, mixed=0, augment="none")
    base.privacy.update(epsilon=8.0, expected_batch_size=512, updates=150)
    base.ema_decay = 0.98
    base.run.update(evaluate_every=150, checkpoint_every=50)
    arms = {order: {"network": {"order": order}} for order in ORDERS}
    config = default_experiment(base, arms)
    config.title = "Norm and activation"
    config.baseline = "norm_first"
    config.tune.optimizer = {"learning_rate": (1.0, 4.0)}
    config.epsilons = (8.0,)
    config.seeds = 3
    return config
