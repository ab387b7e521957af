"""Views of a batch -> the sum of clipped per-example gradients.

The K views of one example are one microbatch: their mean loss has one gradient, which
is clipped once (De et al. 2022, section 3.2; DP-Mix, section 3). No per-view gradient
is ever needed, so a loop over examples costs about what the plain step on the same
views costs, if one example's views fill the processor. Where they do not (few views, or
a tiny network), a chunk of examples is vectorised: one pass over all their views, with
one gradient an example. A loop inside the graph takes chunk after chunk and keeps
nothing but the sum, so memory depends on the chunk and not on the batch.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import keras
import tensorflow as tf

from dpmix_tf.privacy._vectorization import replaced_operations
from dpmix_tf.privacy.mechanism import GaussianMechanism, Record

# While one chunk waits for its last kernels another one starts; a third never paid.
_CHUNKS_IN_FLIGHT = 2


class ClippedSum(NamedTuple):
    """The clipped sum and private (un-noised) figures about it.

    Attributes:
      total: sum over examples of clipped gradients, one tensor a variable.
      loss_sum: float32 scalar, sum over examples of the mean loss over views. Private.
      norm_sum: float32 scalar, sum of gradient norms before clipping. Private.
      clipped: float32 scalar, examples longer than the clip norm. Private.
      non_finite: float32 scalar, examples whose gradient was NaN or infinite and
        counted as zero. Private.
    """

    total: Record
    loss_sum: tf.Tensor
    norm_sum: tf.Tensor
    clipped: tf.Tensor
    non_finite: tf.Tensor


# Measured with benchmarks/step.py. Below 64 views, or 6 million activations, kernels
# are too small to fill the processor and starting them is felt; beyond, vectorising
# only spoils the cache. The other numbers bound memory.
_VIEWS_WANTED = 64
_ACTIVATIONS_WANTED = 6_000_000
_ACTIVATIONS_HELD = 128_000_000
_GRADIENTS_HELD = 64_000_000
_MOST_EXAMPLES = 32


def choose_chunk_size(
    *, views_per_example: int, activations_per_view: int | None, parameters: int
) -> int:
    """Chooses how many examples to vectorise; never from a clock.

    A rule by shape, not a measurement: a seed gives the same run to the last bit only
    if sums are taken in the same order wherever and whenever it is run.

    Args:
      views_per_example: K.
      activations_per_view: numbers that the network's layers emit for one view; None
        where they are not known.
      parameters: trainable numbers, the length of one gradient.

    Returns:
      1, or a power of two up to 32, such that a chunk's activations stay within 128
      million numbers and its gradients within 64 million.
    """
    wanted = _VIEWS_WANTED // views_per_example
    most = min(_MOST_EXAMPLES, _GRADIENTS_HELD // parameters)
    if activations_per_view is not None:
        activations = views_per_example * activations_per_view
        wanted = max(wanted, _ACTIVATIONS_WANTED // activations)
        most = min(most, _ACTIVATIONS_HELD // activations)
    chunk_size = max(1, min(wanted, most))
    return 1 << (chunk_size.bit_length() - 1)


# (mechanism, sum so far, which records there are: bool [c], their views [c,K,...] and
# labels [c,K,classes]) -> (new sum, mean losses [c], norms before clipping [c]).
AddRecords = Callable[
    [GaussianMechanism, Record, tf.Tensor, tf.Tensor, tf.Tensor],
    tuple[Record, tf.Tensor, tf.Tensor],
]


# Labels [c,K,classes] of records -> what each clipped record is multiplied by, float
# [c] in [0, 1]; None for no weights. A record's weight depends on it alone.
WeightsOf = Callable[[tf.Tensor], tf.Tensor | None]


def no_weights(labels: tf.Tensor) -> None:
    """All records count alike."""
    del labels


def add_vectorised(
    variables: Sequence[keras.Variable],
    mean_loss: Callable[[tf.Tensor, tf.Tensor], tf.Tensor],
    weights_of: WeightsOf = no_weights,
) -> AddRecords:
    """Returns what clips and adds the records of a chunk, for networks of any layers.

    Args:
      variables: what to differentiate by; anything else in the network stays frozen.
      mean_loss: one record's (views [K,...], labels [K,classes]) -> mean loss over its
        K views, float32 scalar.
      weights_of: what clipped records are multiplied by.
    """

    def gradient_of(inputs):
        values = [variable.value for variable in variables]
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(values)
            loss = mean_loss(*inputs)
        gradient = tape.gradient(
            loss, values, unconnected_gradients=tf.UnconnectedGradients.ZERO
        )
        return loss, [tf.convert_to_tensor(part) for part in gradient]

    def add(mechanism, total, counted, views, labels):
        losses, records = _each(gradient_of, (views, labels))
        total, norms = mechanism.add(total, records, counted, weights_of(labels))
        return total, losses, norms

    return add


def clipped_gradient_sum(
    mechanism: GaussianMechanism,
    variables: list[tf.Variable],
    examples: tuple[tf.Tensor, ...],
    make_views: Callable[..., tuple[tf.Tensor, tf.Tensor]],
    add_records: AddRecords,
    *,
    chunk_size: int,
    jit_compile: bool = False,
    abandoned: tf.Variable | None = None,
) -> ClippedSum:
    """Adds up the clipped gradients of a batch.

    Args:
      mechanism: holds the clip norm.
      variables: what the sum is for.
      examples: tensors [n,...], the batch; n varies, and 0 gives zeros.
      make_views: the examples of a chunk, tensors [chunk_size,...] -> (their views
        [chunk_size,K,...], soft labels [chunk_size,K,classes]), each example's made of
        it alone. It is outside the tape: what it computes stays frozen.
      add_records: clips the chunk's records and adds them.
      chunk_size: records processed together, 1 or more; memory and speed. The result
        changes with it by rounding alone.
      jit_compile: compile with XLA what is done to a chunk's views. Their shape never
        changes, so that it is compiled once.
      abandoned: bool; once another thread sets it, the loop ends early, and what comes
        out must not be used.

    Returns:
      ClippedSum; removing one example moves `total` by at most the clip norm.
    """
    count = tf.shape(examples[0])[0]

    def add_chunk(accumulated: ClippedSum, counted, views, labels) -> ClippedSum:
        total, losses, norms = add_records(
            mechanism, accumulated.total, counted, views, labels
        )
        finite = tf.math.is_finite(norms) & counted
        return ClippedSum(
            total=total,
            loss_sum=accumulated.loss_sum + _sum_where(finite, losses),
            norm_sum=accumulated.norm_sum + _sum_where(finite, norms),
            clipped=accumulated.clipped
            + _count(finite & (norms > mechanism.clip_norm)),
            non_finite=accumulated.non_finite
            + _count(counted & ~tf.math.is_finite(norms)),
        )

    if jit_compile:
        add_chunk = tf.function(add_chunk, jit_compile=True)

    def body(start, accumulated):
        positions = start + tf.range(chunk_size)
        # The last chunk may be short: empty places repeat an example, uncounted.
        rows = tf.minimum(positions, count - 1)
        chunk = tuple(tf.gather(part, rows) for part in examples)
        # Outside XLA, which draws other random numbers and lacks some image kernels.
        views, labels = make_views(*chunk)
        counted = positions < count
        return start + chunk_size, add_chunk(accumulated, counted, views, labels)

    nothing = ClippedSum(
        total=mechanism.zero(variables),
        loss_sum=tf.constant(0.0),
        norm_sum=tf.constant(0.0),
        clipped=tf.constant(0.0),
        non_finite=tf.constant(0.0),
    )

    def goes_on(start, _):
        return start < count if abandoned is None else (start < count) & ~abandoned

    _, result = tf.while_loop(
        goes_on,
        body,
        (tf.constant(0), nothing),
        parallel_iterations=_CHUNKS_IN_FLIGHT,
    )
    return result


def _each(function, inputs):
    """Maps `function` over the first axis of `inputs`."""
    if inputs[0].shape[0] == 1:
        result = function(tuple(part[0] for part in inputs))
        return tf.nest.map_structure(lambda part: part[tf.newaxis], result)
    with replaced_operations():
        return tf.vectorized_map(function, inputs)


def _sum_where(kept, values):
    return tf.reduce_sum(tf.where(kept, values, 0.0))


def _count(flags):
    return tf.reduce_sum(tf.cast(flags, tf.float32))
