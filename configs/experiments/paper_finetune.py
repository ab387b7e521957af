r"""A linear head on a frozen encoder, as published, on one of the six data sets.

python bin/experiment.py --workdir=runs/paper_pet \
    --config=configs/experiments/paper_finetune.py:oxford_iiit_pet,clip_vit_b16

Meant for GPUs. The learning rates were not published, so three are tried. DP-Mix_Diff
needs its pool to be generated first:
bin/generate_pool.py --config=configs/pools.py:oxford_iiit_pet
"""

from configs import finetune
from dpmix_tf.experiments import default_experiment

_SOURCE = "Bao et al. 2023, with weights trained on LAION-2B"
# Caltech256, SUN397 and Oxford Pet, CLIP ViT-B/16, at epsilon 1, 2, 4, 8.
_PUBLISHED = {
    "caltech256": {
        "self_aug": ("80.36", "89.67", "92.01", "93.17"),
        "dp_mix_self": ("81.21", "90.12", "92.17", "93.39"),
        "dp_mix_diff": ("89.69", "91.82", "92.86", "93.87"),
    },
    "sun397": {
        "self_aug": ("72.65", "76.02", "78.05", "79.54"),
        "dp_mix_self": ("73.19", "76.45", "78.67", "79.57"),
        "dp_mix_diff": ("75.12", "77.78", "79.47", "80.57"),
    },
    "oxford_iiit_pet": {
        "self_aug": ("72.21", "82.11", "85.84", "88.23"),
        "dp_mix_self": ("72.45", "82.51", "86.75", "88.70"),
        "dp_mix_diff": ("83.24", "86.28", "88.25", "89.41"),
    },
}


def get_config(what: str = "oxford_iiit_pet,clip_vit_b16"):
    """Returns the experiment's configuration.

    Args:
      what: data set and encoder, separated by a comma, see configs/finetune.py.
    """
    data, _, encoder = what.partition(",")
    base = finetune.get_config(f"{data},{encoder},dp_mix_diff")
    base.data.validation_fraction = 0.1
    arms = {
        arm: {"views": dict(settings)}
        for arm, settings in finetune.PUBLISHED_ARMS.items()
    }
    config = default_experiment(base, arms)
    config.title = f"A private head on {encoder}: {data}"
    config.epsilons = (1.0, 2.0, 4.0, 8.0)
    config.baseline = "self_aug"
    config.seeds = 3
    config.tune.update({"optimizer": {"learning_rate": (0.3, 1.0, 3.0)}})
    config.equal_compute = ("self_aug", "dp_mix_self")
    published = _PUBLISHED.get(data, {}) if encoder == "clip_vit_b16" else {}
    config.published = tuple(
        (arm, epsilon, figure, _SOURCE)
        for arm, figures in published.items()
        for epsilon, figure in zip(config.epsilons, figures, strict=True)
    )
    return config
