"""The methods that are compared: what each changes in a run's config."""

from collections.abc import Mapping
from typing import Any

# Base augmentation and all the rest stay the config's.
_NO_MIXING = {"mixed": 0, "synthetic": 0}
_MIXED = {"base": 16, "mixed": 18, "synthetic": 0}
ARMS: Mapping[str, Mapping[str, Any]] = {
    "dp_sgd": {"base": 1, "augment": "none", **_NO_MIXING},
    "self_aug_16": {"base": 16, **_NO_MIXING},
    "self_aug_34": {"base": 34, **_NO_MIXING},
    "dp_mix_self": _MIXED,
    "dp_mix_diff": _MIXED | {"synthetic": 2},
    # The released script's: labels are mixed, images are not.
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
    """Arms by name, as an experiment's `arms`: {name: {"views": settings}}."""
    return {name: {"views": dict(ARMS[name])} for name in names}
