r"""Mixers at equal compute on CIFAR-10: half an hour on two cores.

python bin/experiment.py --config=configs/experiments/mixers.py --workdir=runs/mixers

Scattering features and a linear head, on 10,000 examples. Add
--config.base.data.data_dir=... where CIFAR-10 is already prepared by TFDS.
"""

from configs.experiments import cifar10_cpu
from dpmix_tf.experiments import default_experiment

MIXERS = ("mixup", "cutmix", "resizemix", "fmix", "maskmix")


def get_config():
    """Returns the experiment's configuration."""
    base = cifar10_cpu.get_config().base
    base.privacy.updates = 20
    base.optimizer.learning_rate = 0.5
    base.run.evaluate_every = 20
    mixed = {
        mixer: {"views": {"base": 4, "mixed": 4, "mixer": mixer}} for mixer in MIXERS
    }
    arms = {"self_aug": {"views": {"base": 8, "mixed": 0}}} | mixed
    config = default_experiment(base, arms)
    config.title = "Mixers on CIFAR-10's scattering features"
    config.equal_compute = tuple(arms)
    config.show_views = True
    return config
