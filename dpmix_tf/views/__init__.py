"""Makers of views: one private example in, K views out."""

from dpmix_tf.views.base import Records, Views
from dpmix_tf.views.encoded import EncodedViews, to_pairs
from dpmix_tf.views.maker import ViewMaker
from dpmix_tf.views.naive import NaiveMixup
from dpmix_tf.views.presets import (
    dp_mix_diff,
    dp_mix_self,
    naive_mixup,
    no_augmentation,
    self_aug,
)
from dpmix_tf.views.registry import count_views, from_dict, kind_of, make_views
from dpmix_tf.views.store import FeatureStore, Layout

__all__ = [
    "EncodedViews",
    "FeatureStore",
    "Layout",
    "NaiveMixup",
    "Records",
    "ViewMaker",
    "Views",
    "count_views",
    "dp_mix_diff",
    "dp_mix_self",
    "from_dict",
    "kind_of",
    "make_views",
    "naive_mixup",
    "no_augmentation",
    "self_aug",
    "to_pairs",
]
