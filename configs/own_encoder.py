r"""A private linear head on your own encoder, for your own images.

python bin/train.py --config=configs/own_encoder.py --workdir=runs/head \
    --config.network.encoder=encoder.keras \
    --config.data.name=image_folder --config.data.data_dir=photos

The encoder is a .keras file or a SavedModel, trained on public images: float RGB images
in [0, 1] -> features. Without --config.data the head learns scikit-learn's digits.
"""

from dpmix_tf.training import default_config, pretrained_network


def get_config():
    """Returns the run's configuration."""
    config = default_config()
    config.network = pretrained_network("encoder.keras")
    config.views.augment = "affine"
    config.privacy.epsilon = 8.0
    config.privacy.delta = 1e-4
    config.optimizer.learning_rate = 1.0
    config.run.evaluate_every = 20
    return config
