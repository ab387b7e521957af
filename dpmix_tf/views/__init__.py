"""One private example in, K views out."""

from dpmix_tf.views.maker import (
    ViewMaker,
    dp_mix_diff,
    dp_mix_self,
    no_augmentation,
    self_aug,
)

__all__ = ["ViewMaker", "dp_mix_diff", "dp_mix_self", "no_augmentation", "self_aug"]
