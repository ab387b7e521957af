r"""Mixers at equal compute, on CIFAR-10 at half its image size or on digits.

python bin/experiment.py --config=configs/experiments/mixers.py --workdir=runs/mixers
python bin/experiment.py --config=configs/experiments/mixers.py:digits \
    --workdir=runs/mixers_digits --jobs=2

Each takes a quarter of an hour on two cores. For CIFAR-10, a linear head on scattering
features is trained on 10,000 examples of 16 x 16 pixels. Add
--config.base.data.data_dir=... if TFDS has already prepared CIFAR-10 there.
"""

from configs import digits
from configs.experiments import cifar10_cpu
from dpmix_tf.experiments import default_experiment

MIXERS = ("mixup", "cutmix", "resizemix", "fmix", "maskmix")


def get_config(data: str = "cifar10"):
    """Returns the experiment's configuration, on "cifar10" or "digits"."""
    if data == "digits":
        base, one, two = digits.get_config(), 16, 18
    elif data == "cifar10":
        base, one, two = cifar10_cpu.get_config().base, 4, 4
        base.data.image_size, base.views.padding = 16, 2  # four times as fast
        base.privacy.expected_batch_size, base.privacy.updates = 256, 20
        base.optimizer.learning_rate = 1.0
    else:
        raise ValueError(
            f"mixers.py: must be followed by cifar10 or digits, not {data}"
        )
    base.privacy.clipping = "automatic"  # see digits_arms
    mixed = {
        mixer: {"views": {"base": one, "mixed": two, "mixer": mixer}}
        for mixer in MIXERS
    }
    arms = {"self_aug": {"views": {"base": one + two, "mixed": 0}}} | mixed
    config = default_experiment(base, arms)
    config.title = f"Mixers on {data}"
    config.equal_compute = tuple(arms)
    config.show_views = True
    return config
