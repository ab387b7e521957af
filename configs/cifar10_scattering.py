"""CIFAR-10 without any public data: a private head on features that need none.

  python bin/train.py --config=configs/cifar10_scattering.py --workdir=runs/scattering

Add --config.data.data_dir=... if TFDS has already prepared CIFAR-10 there. On two cores
it takes about eight minutes: five for the features of 60,000 images, which are kept,
and two for the head.

Test accuracy in percent at epsilon = 1 / 3 / 8, with rates of 0.5 / 1.5 / 3.5, 5 seeds,
on a JPEG copy of CIFAR-10: 70.1 / 73.9 / 75.8 (docs/results.md).
"""

from dpmix_tf.training import default_config


def get_config():
    """Returns the run's configuration."""
    config = default_config()
    config.data.name = "cifar10"
    config.data.validation_fraction = 0.0
    config.network.update(
        name="scattering", features="scattering+patches", filters=256, head="linear"
    )
    config.views.base = 1
    config.views.mixed = 0
    config.views.augment = "none"
    config.views.visits = 1  # features are made once
    config.privacy.epsilon = 3.0
    config.privacy.delta = 1e-5
    config.privacy.expected_batch_size = 8192
    config.privacy.updates = 240
    config.privacy.clip_norm = 1.0
    config.optimizer.update(name="SGD", learning_rate=1.5, momentum=0.9)
    config.run.evaluate_every = 20
    config.run.checkpoint_every = 20
    return config
