r"""Seven arms on digits: half an hour on two cores.

python bin/generate_pool.py --config=configs/digits_diff.py
python bin/experiment.py --config=configs/experiments/digits_arms.py \
      --workdir=runs/digits_arms --jobs=2
"""

from configs import digits_diff
from dpmix_tf.experiments import arms, default_experiment


def get_config():
    """Returns the experiment's configuration."""
    base = digits_diff.get_config()
    base.data.validation_fraction = 0.2
    base.privacy.updates = 60
    # Means over views are shorter gradients than single ones. Under one clip norm for
    # all, arms with many views may lose signal against the same noise.
    base.privacy.clipping = "automatic"
    base.run.evaluate_every = 20
    compared = arms(
        "dp_sgd", "self_aug_16", "self_aug_34", "dp_mix_self", "dp_mix_diff"
    )
    for name in ("dp_sgd", "dp_mix_diff"):
        compared[f"{name}_warm"] = compared[name] | {"warm_start": {"epochs": 20}}
    config = default_experiment(base, compared)
    config.title = "Arms on digits"
    config.epsilons = (1.0, 2.0, 4.0, 8.0)
    config.seeds = 5
    config.baseline = "self_aug_34"
    config.tune.update({"optimizer": {"learning_rate": (0.25, 0.5, 1.0, 2.0)}})
    config.equal_compute = ("self_aug_34", "dp_mix_self")
    config.show_views = True
    return config
