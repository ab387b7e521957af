"""The clipped sum of a head of dense layers in closed form.

For one record, let a_k be the input of a dense layer for its k-th view and b_k the
gradient of the record's mean loss by that layer's output. The gradient by the kernel is
G = sum_k a_k b_k^T (Goodfellow 2015, "Efficient per-example gradient computations", for
K = 1). Its norm follows either from G itself, or without it from the K x K products of
inputs and of output gradients (Lee and Kifer 2021; Bu et al. 2022, "ghost norm"),
whichever takes fewer multiplications. Once a record's scale s is known, the sum over
records of s G is one matrix product over all their views.
"""

from collections.abc import Callable, Sequence

import keras
import tensorflow as tf

from dpmix_tf.privacy.clipping import AddRecords, WeightsOf, no_weights

# Numbers added up in float32 before float64 takes over. However they are ordered, a sum
# of so many squares is at most _BLOCK * 2^-24 too small; twice that covers the squares'
# own rounding as well.
_BLOCK = 64
_SHORTFALL = 1 + 2 * _BLOCK * 2.0**-24

# Rounding a scaled output gradient to float32 moves the record by at most 2^-24 times
# sum_k |a_k| |b_k|, which is more than 2^-24 of its norm where the terms cancel.
_ROUNDING = 2.0**-22


# Numbers of a chunk's features, and of what its layers emit. Larger chunks are no
# faster, and smaller ones leave matrix products too small to fill the processor.
_CHUNK_NUMBERS = 8_000_000


def choose_dense_chunk_size(
    views: int, features: int, activations: int | None, expected_batch_size: float
) -> int:
    """Chooses how many records to process at a time; by shape, never from a clock.

    Args:
      views: K.
      features: numbers that the first layer takes for one view.
      activations: numbers that the layers emit for one view.
      expected_batch_size: the plan's.

    Returns:
      A power of two, such that a chunk has at most 8 million numbers, and a batch has
      about four chunks or more: the last one is filled up with records that are not
      counted.
    """
    records = _CHUNK_NUMBERS // (views * (features + (activations or 0)))
    records = max(1, min(records, int(expected_batch_size / 4)))
    return 1 << (records.bit_length() - 1)


def add_dense(
    variables: Sequence[keras.Variable],
    layers: Sequence[keras.layers.Layer],
    losses: Callable[[tf.Tensor, tf.Tensor], tf.Tensor],
    weights_of: WeightsOf = no_weights,
) -> AddRecords:
    """Returns what clips and adds the records of a chunk, for a chain of dense layers.

    Formal guarantee: as of `GaussianMechanism.add`. A norm is never taken too small,
    and at most 4e-6 of itself too large.

    Args:
      variables: what to differentiate by.
      layers: applied one after the other; see models.dense_layers.
      losses: logits [n,classes], labels [n,classes] -> one loss per view, [n].
      weights_of: what clipped records are multiplied by.
    """

    def add(mechanism, total, counted, views, labels):
        mean_losses, parts = _parts(layers, losses, views, labels)
        norms = tf.sqrt(tf.add_n([part.squares for part in parts]))
        norms += _ROUNDING * tf.add_n([part.slack for part in parts])
        scales = mechanism.scales(norms, counted, weights_of(labels))
        sums = {}
        for part in parts:
            sums |= part.scaled_sums(scales)
        total = [
            so_far + sums[id(variable)]
            for so_far, variable in zip(total, variables, strict=True)
        ]
        return total, mean_losses, tf.cast(norms, tf.float32)

    return add


def _parts(layers, losses, views, labels) -> tuple[tf.Tensor, list["_DensePart"]]:
    """The records' mean losses, float32 [c], and the layers' parts of the gradients."""
    count, num_views = views.shape[:2]
    taps: list[tuple[keras.layers.Layer, tf.Tensor, tf.Tensor]] = []
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        values = tf.reshape(views, [-1, *views.shape[2:]])
        for layer in layers:
            if not isinstance(layer, keras.layers.Dense):
                values = layer(values, training=True)
                continue
            inputs, values = values, tf.matmul(values, layer.kernel)
            if layer.use_bias:
                values += layer.bias
            tape.watch(values)
            taps.append((layer, inputs, values))
            values = layer.activation(values)
        each = losses(values, tf.reshape(labels, [-1, labels.shape[-1]]))
        mean_losses = tf.reduce_mean(tf.reshape(each, [count, num_views]), axis=1)
        whole = tf.reduce_sum(mean_losses)
    gradients = tape.gradient(whole, [outputs for _, _, outputs in taps])
    parts = [
        _DensePart(layer, *(_by_record(t, count) for t in (inputs, gradient)))
        for (layer, inputs, _), gradient in zip(taps, gradients, strict=True)
        if layer.trainable_variables
    ]
    return mean_losses, parts


def _by_record(tensor: tf.Tensor, count: int) -> tf.Tensor:
    """[c*K,...,width] -> [c,K',width], where K' counts views and positions in them."""
    return tf.reshape(tensor, [count, -1, tensor.shape[-1]])


class _DensePart:
    """One dense layer's part of the records' gradients.

    Attributes:
      squares: float64 [c], its squared length.
      slack: float64 [c], what its rounding is relative to, see _ROUNDING.
    """

    def __init__(self, layer, inputs, gradients):
        """Takes inputs [c,K',in] and gradients by outputs [c,K',out]."""
        self._layer, self._inputs, self._gradients = layer, inputs, gradients
        views, width, outputs = inputs.shape[1], inputs.shape[2], gradients.shape[2]
        self._products = None  # [c,in,out], where they are smaller
        lengths = _squares(gradients)
        self.slack = tf.zeros(inputs.shape[:1], tf.float64)
        if views == 1:
            squares = (_squares(inputs) * lengths)[:, 0]
        elif views * (width + outputs) < width * outputs:
            squares = _pairs(inputs) * _pairs(gradients)
            squares = tf.maximum(tf.reduce_sum(squares, axis=[1, 2]), 0.0)
            self.slack = tf.reduce_sum(tf.sqrt(_squares(inputs) * lengths), axis=1)
        else:
            self._products = tf.matmul(inputs, gradients, transpose_a=True)
            squares = _squares(tf.reshape(self._products, [-1, width * outputs]))
        self._bias_gradients = tf.reduce_sum(gradients, axis=1)
        if layer.use_bias:
            squares += _squares(self._bias_gradients)
        self.squares = squares

    def scaled_sums(self, scales: tf.Tensor) -> dict[int, tf.Tensor]:
        """Sums over records, times their scales, by id of the variable."""
        width, outputs = self._inputs.shape[2], self._gradients.shape[2]
        kept = scales > 0
        whole = tf.reduce_all(kept)
        if self._products is not None:
            rows = tf.reshape(self._products, [-1, width * outputs])
            rows = _emptied(rows, kept, whole)
            kernel = tf.linalg.matvec(rows, scales, transpose_a=True)
            kernel = tf.reshape(kernel, [width, outputs])
        else:
            # 0 * NaN is NaN: both factors of a record that is not added are emptied.
            inputs = _emptied(self._inputs, kept, whole)
            scaled = _emptied(self._gradients, kept, whole)
            scaled *= scales[:, tf.newaxis, tf.newaxis]
            kernel = tf.matmul(
                tf.reshape(inputs, [-1, width]),
                tf.reshape(scaled, [-1, outputs]),
                transpose_a=True,
            )
        sums = {id(self._layer.kernel): kernel}
        if self._layer.use_bias:
            rows = _emptied(self._bias_gradients, kept, whole)
            sums[id(self._layer.bias)] = tf.linalg.matvec(
                rows, scales, transpose_a=True
            )
        return sums


def _emptied(rows: tf.Tensor, kept: tf.Tensor, whole: tf.Tensor) -> tf.Tensor:
    """Zeros in the rows that are not kept; a pass that is almost never needed."""
    mask = tf.reshape(kept, [-1] + [1] * (rows.shape.rank - 1))
    return tf.cond(whole, lambda: rows, lambda: tf.where(mask, rows, 0.0))


def _squares(vectors: tf.Tensor) -> tf.Tensor:
    """Squared lengths of float32 [...,n], in float64 [...]; never too small."""
    width = vectors.shape[-1]
    if width <= _BLOCK:
        sums = tf.reduce_sum(tf.square(vectors), axis=-1)
        return _SHORTFALL * tf.cast(sums, tf.float64)
    padding = [[0, 0]] * (vectors.shape.rank - 1) + [[0, -width % _BLOCK]]
    squares = tf.square(vectors)
    if width % _BLOCK:
        squares = tf.pad(squares, padding)
    blocks = tf.reshape(squares, [-1, _BLOCK])
    # A product with ones is a sum, at the speed of memory.
    sums = tf.linalg.matvec(blocks, tf.ones([_BLOCK]))
    sums = tf.reshape(sums, [*vectors.shape[:-1], -1])
    return _SHORTFALL * tf.reduce_sum(tf.cast(sums, tf.float64), axis=-1)


def _pairs(vectors: tf.Tensor) -> tf.Tensor:
    """Products of all pairs, float32 [c,K,n] -> float64 [c,K,K].

    In float64 a product of two float32 numbers is exact, so that what cancels in the
    sum of all pairs leaves nothing that matters.
    """
    exact = tf.cast(vectors, tf.float64)
    return tf.matmul(exact, exact, transpose_b=True)
