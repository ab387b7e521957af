r"""Compares orders of norm and activation in a wide residual network: WRN-10-1, digits.

python bin/experiment.py --config=configs/experiments/network_order.py \
    --workdir=runs/network_order --jobs=2

All arms use plain DP-SGD, so that only the order differs; nothing is tuned. It takes
about ten minutes on two cores.
"""

from configs import digits
from dpmix_tf.experiments import arms, default_experiment


def get_config():
    """Returns the experiment's configuration."""
    base = digits.get_config()
    base.network = {
        "name": "wide_resnet",
        "depth": 10,
        "width": 1,
        "groups": 16,
        "order": "activation_first",
    }
    base.privacy.updates = 200
    config = default_experiment(base, arms("dp_sgd"))
    config.title = "Norm and activation"
    orders = ("activation_first", "shortcut_norm_first", "norm_first")
    settings = config.arms.dp_sgd.to_dict()
    config.arms = {order: settings | {"network": {"order": order}} for order in orders}
    config.order, config.baseline = orders, "norm_first"
    config.equal_compute = ()
    config.epsilons = (8.0,)
    config.seeds = 5
    return config
