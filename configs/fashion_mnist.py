"""Fashion-MNIST without any public data: a private head on features that need none.

  python bin/train.py --config=configs/fashion_mnist.py --workdir=runs/fashion_mnist

Add --config.data.data_dir=... if TFDS has already prepared Fashion-MNIST there.
"""

from configs import cifar10_scattering


def get_config():
    """Returns the run's configuration."""
    config = cifar10_scattering.get_config()
    config.data.name = "fashion_mnist"
    return config
