r"""How far an encoder that installs goes on all of CIFAR-10: depths, and a warm start.

python bin/generate_pool.py --config=configs/cifar10_encoder.py:48500 --import_left_out
python bin/experiment.py --config=configs/experiments/encoder_depths.py \
    --workdir=runs/encoder_depths --jobs=2

48,500 private images, 500 for validation, and 50 public ones of each class. Add
--config.base.data.data_dir=... (for the pool, --config.data.data_dir=...) if TFDS has
already prepared CIFAR-10 there. Encoding takes most of the time.
"""

from configs import cifar10_encoder
from dpmix_tf.experiments import default_experiment


def get_config():
    """Returns the experiment's configuration."""
    base = cifar10_encoder.get_config("48500")
    warm = {"warm_start": base.warm_start.to_dict()}
    base.warm_start.epochs = 0
    base.network.image_size = 224
    base.network.components = 400
    base.dtype_policy = "mixed_bfloat16"  # of the encoder: twice as fast
    base.views.update(base=1, mixed=0, synthetic=0, augment="none")
    base.privacy.delta = 1e-5
    base.privacy.expected_batch_size = 8192
    depths = {"network": {"depths": (0, 2)}}
    arms = {
        "last": {},
        "two_depths": depths,
        "last_warm": warm,
        "two_depths_warm": depths | warm,
    }
    config = default_experiment(base, arms)
    config.title = "All of CIFAR-10 under EfficientNet-Lite0"
    config.epsilons = (1.0, 3.0, 8.0)
    config.seeds = 5
    config.tune.update({"optimizer": {"learning_rate": (5.0, 15.0, 45.0, 130.0)}})
    return config
