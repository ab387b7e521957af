"""The published methods by name: view makers with the paper's numbers of views.

Each takes any other attribute of ViewMaker by keyword, such as padding=1.
"""

from typing import Any

from dpmix_tf.synthetic import SyntheticPool
from dpmix_tf.views.maker import ViewMaker
from dpmix_tf.views.naive import NaiveMixup


def no_augmentation() -> ViewMaker:
    """One view, the example itself: plain DP-SGD."""
    return ViewMaker()


def self_aug(
    *, base: int = 16, augment: str = "crop_flip", **settings: Any
) -> ViewMaker:
    """Augmentation multiplicity (De et al. 2022): `base` augmented copies."""
    return ViewMaker(base=base, augment=augment, **settings)


def dp_mix_self(*, mixed: int = 18, **settings: Any) -> ViewMaker:
    """DP-Mix_Self (Bao et al. 2023): augmented copies, and blends of them."""
    return self_aug(mixed=mixed, **settings)


def dp_mix_diff(
    *, pool: SyntheticPool, synthetic: int = 2, **settings: Any
) -> ViewMaker:
    """DP-Mix_Diff (Bao et al. 2023): images of a public pool join the blends."""
    return dp_mix_self(pool=pool, synthetic=synthetic, **settings)


def naive_mixup(*, microbatch: int, **settings: Any) -> NaiveMixup:
    """A blend of different examples, at twice the sensitivity: a weak baseline."""
    return NaiveMixup(microbatch=microbatch, **settings)
