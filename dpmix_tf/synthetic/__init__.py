"""Public images: pools, labelled, for DP-Mix_Diff; and dead leaves, made of nothing."""

from dpmix_tf.synthetic.leaves import dead_leaves
from dpmix_tf.synthetic.pool import SyntheticPool

__all__ = ["SyntheticPool", "dead_leaves"]
