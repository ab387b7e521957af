r"""Ablations of the number of views of each kind, K_BASE, K_SELF, K_DIFF, and of alpha.

python bin/generate_pool.py --config=configs/digits_diff.py
python bin/experiment.py --config=configs/experiments/ablation.py \
    --workdir=runs/ablation --jobs=2
"""

from configs import digits_diff
from dpmix_tf.experiments import default_experiment


def get_config():
    """Returns the experiment's configuration."""
    # One field is varied at a time, from 16 base, 18 mixed and 2 synthetic views.
    moved = {
        "base": (4, 8, 16),
        "mixed": (0, 9, 18, 36),
        "synthetic": (0, 1, 2, 4),
        "alpha": (0.1, 0.2, 1.0),
    }
    base = digits_diff.get_config()
    arms, ablations = {"usual": {}}, []
    for field, values in moved.items():
        names = [f"{field}_{value:g}".replace(".", "_") for value in values]
        for index, value in enumerate(values):
            if value == base.views[field]:
                names[index] = "usual"
            else:
                arms[names[index]] = {"views": {field: value}}
        ablations.append((f"views.{field}", tuple(names)))
    config = default_experiment(base, arms)
    config.title = "Views of each kind"
    config.baseline = "usual"
    config.ablations = tuple(ablations)
    config.show_views = True
    return config
