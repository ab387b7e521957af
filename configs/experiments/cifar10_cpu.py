r"""DP-SGD, Self-Aug and DP-Mix_Self on CIFAR-10's scattering features, on two cores.

python bin/experiment.py --config=configs/experiments/cifar10_cpu.py \
    --workdir=runs/cifar10_cpu --jobs=2

A private linear head on features that need no data, trained on 9,000 images, in twenty
minutes. Self-Aug and DP-Mix_Self have as many views each, made and encoded once. Add
--config.base.data.data_dir=... if TFDS has already prepared CIFAR-10 there.
"""

from configs import cifar10_scattering
from dpmix_tf.experiments import default_experiment


def get_config():
    """Returns the experiment's configuration."""
    base = cifar10_scattering.get_config()
    base.data.train_examples = 10_000
    base.data.validation_fraction = 0.1
    base.network.features = "scattering"
    base.views.augment = "crop_flip"
    base.privacy.expected_batch_size = 1024
    base.privacy.updates = 40
    base.privacy.clipping = "automatic"  # see digits_arms
    base.run.evaluate_every = 20
    config = default_experiment(
        base,
        {
            "dp_sgd": {"views": {"base": 1, "mixed": 0, "augment": "none"}},
            "self_aug_8": {"views": {"base": 8, "mixed": 0}},
            "dp_mix_self": {"views": {"base": 4, "mixed": 4}},
        },
    )
    config.title = "DP-SGD, Self-Aug and DP-Mix_Self on CIFAR-10's scattering features"
    config.epsilons = (3.0, 8.0)
    config.seeds = 5
    config.baseline = "self_aug_8"
    config.equal_compute = ("self_aug_8", "dp_mix_self")
    config.tune.optimizer = {"learning_rate": (0.5, 1.0, 2.0)}
    config.show_views = True
    return config
