"""DP-Mix_Diff on CIFAR-10, its synthetic images by KerasCV's Stable Diffusion.

  python bin/generate_pool.py --config=configs/cifar10_diff.py
  python bin/train.py --config=configs/cifar10_diff.py --workdir=runs/cifar10_diff

The pool wants a GPU: 5,000 images of 512x512 pixels and 25 steps, shrunk to 32x32. It
can be made on another machine than the one that holds the private images, in parts with
--shard=1/8 and so on. The network is cifar10_convnet's.
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
