r"""Self-Aug and DP-Mix_Self at equal compute on CIFAR-10, on two cores.

python bin/experiment.py --config=configs/experiments/cifar10_cpu.py \
    --workdir=runs/cifar10_cpu

A linear head on scattering features, trained on 10,000 examples, in twenty minutes. Add
--config.base.data.data_dir=... if TFDS has already prepared CIFAR-10 there. For a
larger experiment, at an hour per run, add --config.base.data.train_examples=50000
--config.base.privacy.updates=120 --config.base.privacy.expected_batch_size=8192
--config.seeds=5.
"""

from configs import cifar10_scattering
from dpmix_tf.experiments import default_experiment


def get_config():
    """Returns the experiment's configuration."""
    base = cifar10_scattering.get_config()
    base.data.train_examples = 10_000
    base.data.validation_fraction = 0.1
    base.views.augment = "crop_flip"
    base.privacy.expected_batch_size = 512
    base.privacy.updates = 12
    base.privacy.clipping = "automatic"  # see digits_arms
    base.optimizer.learning_rate = 0.5
    base.run.evaluate_every = 6
    base.run.checkpoint_every = 10
    config = default_experiment(
        base,
        {
            "self_aug_8": {"views": {"base": 8, "mixed": 0}},
            "dp_mix_self": {"views": {"base": 4, "mixed": 4}},
        },
    )
    config.title = "Self-Aug and DP-Mix_Self on CIFAR-10's scattering features"
    config.epsilons = (3.0, 8.0)
    config.seeds = 3
    config.equal_compute = ("self_aug_8", "dp_mix_self")
    config.show_views = True
    return config
