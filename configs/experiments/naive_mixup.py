r"""Why mixing different private examples loses: naive mixup by microbatch size.

python bin/experiment.py --config=configs/experiments/naive_mixup.py \
    --workdir=runs/naive_mixup --jobs=2

The report's cost table gives the noise per clipped term.
"""

from configs import digits
from dpmix_tf.experiments import arms, default_experiment


def get_config():
    """Returns the experiment's configuration."""
    names = ("dp_sgd", "naive_mixup_2", "naive_mixup_4", "naive_mixup_8", "dp_mix_self")
    base = digits.get_config()
    base.privacy.clipping = "automatic"  # see digits_arms
    config = default_experiment(base, arms(*names))
    config.title = "Naive mixup"
    config.epsilons = (1.0, 8.0)
    config.tune.update({"optimizer": {"learning_rate": (0.5, 1.0, 2.0)}})
    config.ablations = (("views.microbatch", names[1:4]),)
    return config
