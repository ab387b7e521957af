r"""A few private photographs, a few public ones, and an encoder that installs.

  pip install -e ".[encoders]"
  python bin/generate_pool.py --config=configs/cifar10_encoder.py:432 --import_left_out
  python bin/train.py --config=configs/cifar10_encoder.py:432 --workdir=runs/encoder

After the colon: how many images of CIFAR-10 are private. 500 more are for validation,
and 50 of each class, of those that remain, are public: they are the pool, from which
features are centred and the head starts. Add --config.data.data_dir=... if TFDS has
already prepared CIFAR-10 there.
"""

from dpmix_tf.training import default_config, pretrained_network

_VALIDATION = 500


def get_config(private: str = "432"):
    """Returns the run's configuration.

    Args:
      private: number of private training images.
    """
    examples = int(private) + _VALIDATION
    config = default_config()
    config.data.name = "cifar10"
    config.data.train_examples = examples
    config.data.validation_fraction = _VALIDATION / examples
    config.network = pretrained_network("efficientnet_lite0")
    config.network.image_size = 112  # four times as fast as at its own 224
    config.network.normalise = "pool"
    config.views.base = 16
    config.views.mixed = 18
    config.views.synthetic = 2
    config.views.visits = 1
    config.pool.path = f"pools/cifar10_beside_{private}"
    config.pool.images_per_class = 50
    config.warm_start.epochs = 20
    config.privacy.epsilon = 8.0
    config.privacy.delta = 1e-4
    config.privacy.expected_batch_size = max(1, int(private) // 4)
    config.privacy.updates = 60
    config.privacy.clipping = "automatic"
    config.optimizer.update(name="SGD", learning_rate=0.5)
    config.run.evaluate_every = 60
    config.run.checkpoint_every = 60
    return config
