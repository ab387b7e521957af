"""One private example in, K views out."""

from dpmix_tf.views.maker import (
    ViewMaker,
    dp_mix_diff,
    dp_mix_self,
    no_augmentation,
    self_aug,
)
from dpmix_tf.views.naive import NaiveMixup, make_views, naive_mixup

__all__ = [
    "NaiveMixup",
    "ViewMaker",
    "dp_mix_diff",
    "dp_mix_self",
    "make_views",
    "naive_mixup",
    "no_augmentation",
    "self_aug",
]
