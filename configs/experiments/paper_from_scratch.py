r"""CIFAR-10 from scratch as published: WRN-16-4, 2,400 updates of 4,096 examples.

python bin/experiment.py --config=configs/experiments/paper_from_scratch.py \
    --workdir=runs/paper_from_scratch --shard=1/8

Meant for GPUs, a shard each. The published learning rate is 4, and 2 at epsilon = 1;
both are tried, on a tenth of the training images.
"""

from configs import cifar10_wrn16_4
from dpmix_tf.experiments import arms, default_experiment

_RERUN = "R+R (ACSAC 2024), order 0, last digits 3 seeds' deviation"
_PUBLISHED = {
    "dp_sgd": ("32.19", "47.00", "52.75", "71.68 (.50)"),
    "self_aug_16": ("32.42", "48.98", "56.06", "77.79 (.50)"),
    "dp_mix_self": ("32.57", "49.14", "57.24", "78.49 (.21)"),
}


def get_config():
    """Returns the experiment's configuration."""
    base = cifar10_wrn16_4.get_config()
    base.data.validation_fraction = 0.1
    config = default_experiment(base, arms(*_PUBLISHED, "self_aug_34"))
    config.title = "CIFAR-10 from scratch"
    config.epsilons = (0.1, 0.5, 1.0, 8.0)
    config.baseline = "self_aug_34"
    config.tune.update({"optimizer": {"learning_rate": (2.0, 4.0)}})
    config.equal_compute = ("self_aug_34", "dp_mix_self")
    config.published = tuple(
        (arm, epsilon, figure, _RERUN)
        for arm, figures in _PUBLISHED.items()
        for epsilon, figure in zip(config.epsilons, figures, strict=True)
    )
    return config
