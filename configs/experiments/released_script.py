r"""Does blending pixels matter? The released script blended only the labels.

python bin/experiment.py --config=configs/experiments/released_script.py \
    --workdir=runs/released_script --jobs=2
"""

from configs import digits
from dpmix_tf.experiments import arms, default_experiment


def get_config():
    """Returns the experiment's configuration."""
    names = ("self_aug_34", "labels_only", "dp_mix_self")
    base = digits.get_config()
    base.privacy.clipping = "automatic"  # see digits_arms
    config = default_experiment(base, arms(*names))
    config.title = "Blended pixels and blended labels"
    config.epsilons = (1.0, 8.0)
    config.tune.update({"optimizer": {"learning_rate": (0.5, 1.0, 2.0)}})
    config.equal_compute = names
    return config
