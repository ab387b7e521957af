r"""How many views of each kind, and how strongly mixed: K_BASE, K_SELF, K_DIFF, alpha.

python bin/generate_pool.py --config=configs/digits_diff.py
python bin/experiment.py --config=configs/experiments/ablation.py \
    --workdir=runs/ablation --jobs=2
"""

from configs import digits_diff
from dpmix_tf.experiments import default_experiment


def get_config():
    """Returns the experiment's configuration."""
    # One field is moved at a time, from 16 base, 18 mixed and 2 synthetic views.
    moved = {
        "base": (4, 8, 16),
        "mixed": (0, 9, 18, 36),
        "synthetic": (0, 1, 2, 4),
        "alpha": (0.1, 0.2, 1.0),
    }
    arms, ablations = {}, []
    for field, values in moved.items():
        names = tuple(f"{field}_{value:g}".replace(".", "_") for value in values)
        for name, value in zip(names, values, strict=True):
            arms[name] = {"views": {field: value}}
        ablations.append((f"views.{field}", names))
    config = default_experiment(digits_diff.get_config(), arms)
    config.title = "Views of each kind"
    config.baseline = "mixed_18"
    config.ablations = tuple(ablations)
    config.show_views = True
    return config
