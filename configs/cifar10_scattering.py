"""DP-SGD on CIFAR-10's scattering features: a quarter of an hour on two cores.

  python bin/train.py --config=configs/cifar10_scattering.py --workdir=runs/scattering

Add --config.data.data_dir=... if TFDS has already prepared CIFAR-10 there. Published
for these features with a linear head at epsilon = 3: 67.0 percent (Tramer and Boneh
2021).
"""

from dpmix_tf.training import default_config


def get_config():
    """Returns the run's configuration."""
    config = default_config()
    config.data.name = "cifar10"
    config.data.validation_fraction = 0.0
    config.network.update(name="scattering", features="group_norm")
    config.views.base = 1
    config.views.mixed = 0
    config.views.augment = "none"
    config.privacy.epsilon = 3.0
    config.privacy.delta = 1e-5
    config.privacy.expected_batch_size = 8192
    config.privacy.updates = 120
    config.privacy.clip_norm = 1.0
    config.optimizer.update(name="SGD", learning_rate=0.5, momentum=0.9)
    config.ema_decay = 0.9999
    config.run.evaluate_every = 20
    config.run.checkpoint_every = 5
    return config
