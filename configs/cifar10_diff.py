"""DP-Mix_Diff on CIFAR-10, with synthetic images from KerasCV's Stable Diffusion.

  python bin/generate_pool.py --config=configs/cifar10_diff.py
  python bin/train.py --config=configs/cifar10_diff.py --workdir=runs/cifar10_diff

Generating the pool needs a GPU: 5,000 images of 512x512 pixels, with 25 steps each, are
shrunk to 32x32. It can be generated on a different machine from the one that holds the
private images, and in parts, with --shard=1/8 and so on. The network is that of
cifar10_convnet.
"""

from configs import cifar10_convnet


def get_config():
    """Returns the run's configuration."""
    config = cifar10_convnet.get_config()
    config.views.synthetic = 2
    config.pool.path = "pools/cifar10"
    config.pool.generator = "stable_diffusion"
    config.pool.images_per_class = 500
    return config
