"""DP-Mix_Self on scikit-learn's 1,797 handwritten digits: minutes on two cores.

  python bin/train.py --config=configs/digits.py --workdir=runs/digits

Expect about 95 % test accuracy at epsilon = 8, delta = 1e-4.
"""

from dpmix_tf.training import default_config


def get_config():
    """Returns the run's configuration."""
    config = default_config()
    config.data.name = "digits"
    config.network.update(name="convnet", widths=(32, 64), groups=8)
    config.views.base = 16
    config.views.mixed = 18
    # A crop that moves by whole pixels is coarse on 8x8 images, and the strokes that
    # its padding mirrors at the edges look like other digits.
    config.views.augment = "affine"
    config.privacy.epsilon = 8.0
    config.privacy.delta = 1e-4
    config.privacy.expected_batch_size = 256
    config.privacy.updates = 100
    config.optimizer.update(name="SGD", learning_rate=1.0)
    config.run.evaluate_every = 10
    config.run.checkpoint_every = 20
    return config
