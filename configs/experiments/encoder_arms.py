r"""Arms on CIFAR-10's photographs under a frozen encoder: which of them pay?

python bin/generate_pool.py --config=configs/cifar10_encoder.py:432 --import_left_out
python bin/experiment.py --config=configs/experiments/encoder_arms.py:432 \
    --workdir=runs/encoder_arms_432 --jobs=2

After the colon: how many images are private; the pool has 50 public ones per class. All
views are encoded once. Add --config.base.data.data_dir=... (for the pool,
--config.data.data_dir=...) if TFDS has already prepared CIFAR-10 there.
"""

from configs import cifar10_encoder
from dpmix_tf.experiments import arms, default_experiment


def get_config(private: str = "432"):
    """Returns the experiment's configuration.

    Args:
      private: number of private training images.
    """
    base = cifar10_encoder.get_config(private)
    warm = {"warm_start": base.warm_start.to_dict()}
    base.warm_start.epochs = 0
    compared = arms(
        "dp_sgd", "self_aug_16", "self_aug_34", "dp_mix_self", "dp_mix_diff"
    )
    compared["unmixed_diff"] = {"views": {"base": 16, "mixed": 0, "synthetic": 2}}
    for name in ("dp_sgd", "dp_mix_diff"):
        compared[f"{name}_warm"] = compared[name] | warm
    config = default_experiment(base, compared)
    config.title = f"Arms on {private} photographs of CIFAR-10, EfficientNet-Lite0"
    config.epsilons = (1.0, 3.0, 8.0)
    config.seeds = 5
    config.baseline = "self_aug_34"
    config.tune.update({"optimizer": {"learning_rate": (0.03, 0.1, 0.3, 1.0, 3.0)}})
    config.equal_compute = ("self_aug_34", "dp_mix_self")
    config.show_views = True
    return config
