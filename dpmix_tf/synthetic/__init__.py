"""Pools of labelled public images, for DP-Mix_Diff."""

from dpmix_tf.synthetic.pool import SyntheticPool

__all__ = ["SyntheticPool"]
