"""The methods that are compared, as the changes each makes to a run's config."""

from collections.abc import Mapping
from typing import Any

# Base augmentation and all other settings stay as in the config.
_NO_MIXING = {"mixed": 0, "synthetic": 0}
_MIXED = {"base": 16, "mixed": 18, "synthetic": 0}
ARMS: Mapping[str, Mapping[str, Any]] = {
    "dp_sgd": {"base": 1, "augment": "none", **_NO_MIXING},
    "self_aug_16": {"base": 16, **_NO_MIXING},
    "self_aug_34": {"base": 34, **_NO_MIXING},
    "dp_mix_self": _MIXED,
    "dp_mix_diff": _MIXED | {"synthetic": 2},
    # As in the released script: labels are mixed, images are not.
    "labels_only": _MIXED | {"labels_only": True},
    **{
        mixer: _MIXED | {"mixer": mixer}
        for mixer in ("cutmix", "resizemix", "fmix", "maskmix")
    },
    # Different examples in one view, which DP-Mix avoids: see views/naive.py.
    **{
        f"naive_mixup_{size}": {"microbatch": size, "base": 1, **_NO_MIXING}
        for size in (2, 4, 8)
    },
}


def arms(*names: str) -> dict[str, dict[str, Any]]:
    """Returns arms for an experiment's `arms` field: {name: {"views": settings}}."""
    return {name: {"views": dict(ARMS[name])} for name in names}
