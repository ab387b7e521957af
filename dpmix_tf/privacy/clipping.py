"""Views of a batch -> the sum of clipped per-example gradients.

The K views of one example are one microbatch: their mean loss has one gradient, which
is clipped once (De et al. 2022, section 3.2; DP-Mix, section 3). No per-view gradient
is ever needed, so a loop over examples costs about what the plain step on the same
views costs. The loop runs inside the graph; `chunk_size` of its iterations may be in
flight together, which sets memory and speed. The sum is taken in the batch's order
whatever the chunk size, so the result does not depend on it.
"""

from collections.abc import Callable
from typing import NamedTuple

import tensorflow as tf

from dpmix_tf.privacy.mechanism import GaussianMechanism, Record


class ClippedSum(NamedTuple):
    """The clipped sum and private (un-noised) figures about it.

    Attributes:
      total: sum over examples of clipped gradients, one tensor a variable.
      loss_sum: float32 scalar, sum over examples of the mean loss over views. Private.
      norm_sum: float32 scalar, sum of gradient norms before clipping. Private.
      clipped: int32 scalar, examples longer than the clip norm. Private.
      non_finite: int32 scalar, examples whose gradient was NaN or infinite and counted
        as zero. Private.
    """

    total: Record
    loss_sum: tf.Tensor
    norm_sum: tf.Tensor
    clipped: tf.Tensor
    non_finite: tf.Tensor


def clipped_gradient_sum(
    mechanism: GaussianMechanism,
    variables: list[tf.Variable],
    num_examples: tf.Tensor,
    views_of: Callable[[tf.Tensor], tuple[tf.Tensor, tf.Tensor]],
    mean_loss: Callable[[tf.Tensor, tf.Tensor], tf.Tensor],
    *,
    chunk_size: int,
) -> ClippedSum:
    """Adds up the clipped gradients of a batch.

    Args:
      mechanism: clips and adds.
      variables: what to differentiate by; anything else in the network stays frozen.
      num_examples: int32 scalar, the batch's actual size; 0 gives zeros.
      views_of: position in the batch -> (views [K,H,W,C], soft labels [K,classes]) of
        the example there, and of no other.
      mean_loss: (views, labels) -> mean loss over the K views, a scalar.
      chunk_size: examples in flight together, 1 or more.

    Returns:
      ClippedSum; removing one example moves `total` by at most the clip norm.
    """

    def add_example(position, accumulated: ClippedSum):
        views, labels = views_of(position)
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(variables)
            loss = mean_loss(views, labels)
        gradient = [
            tf.convert_to_tensor(part)
            for part in tape.gradient(
                loss, variables, unconnected_gradients=tf.UnconnectedGradients.ZERO
            )
        ]
        clipped, norm = mechanism.clip(gradient)
        finite = tf.math.is_finite(norm)
        return position + 1, ClippedSum(
            total=mechanism.add(accumulated.total, clipped),
            loss_sum=accumulated.loss_sum + tf.where(finite, loss, 0.0),
            norm_sum=accumulated.norm_sum + tf.where(finite, norm, 0.0),
            clipped=accumulated.clipped
            + tf.cast(finite & (norm > mechanism.clip_norm), tf.int32),
            non_finite=accumulated.non_finite + tf.cast(~finite, tf.int32),
        )

    nothing = ClippedSum(
        total=mechanism.zero(variables),
        loss_sum=tf.constant(0.0),
        norm_sum=tf.constant(0.0),
        clipped=tf.constant(0),
        non_finite=tf.constant(0),
    )
    _, result = tf.while_loop(
        lambda position, _: position < num_examples,
        add_example,
        (tf.constant(0), nothing),
        parallel_iterations=chunk_size,
    )
    return result
