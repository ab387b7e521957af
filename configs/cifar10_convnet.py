"""DP-Mix_Self on CIFAR-10 with a small network: about half an hour on two cores.

  python bin/train.py --config=configs/cifar10_convnet.py --workdir=runs/cifar10_convnet

Add --config.data.data_dir=... if TFDS has already prepared CIFAR-10 there. The network
is small on purpose: the run is for checking a setup, and its accuracy is far below that
of cifar10_wrn16_4.
"""

from dpmix_tf.training import default_config


def get_config():
    """Returns the run's configuration."""
    config = default_config()
    config.data.name = "cifar10"
    config.network.update(name="convnet", widths=(16, 32, 64), groups=8)
    config.views.base = 16
    config.views.mixed = 18
    config.views.augment = "crop_flip"
    config.privacy.epsilon = 8.0
    config.privacy.delta = 1e-5
    config.privacy.expected_batch_size = 512
    config.privacy.updates = 180
    config.optimizer.update(name="SGD", learning_rate=2.0)
    config.run.evaluate_every = 20
    config.run.checkpoint_every = 20
    return config
