"""Draws several different images from a pool."""

import tensorflow as tf

# One number has 23 random bits, too few to draw evenly from a large pool.
INDEX_DRAWS = 2


def distinct(size: tf.Tensor, draws: tf.Tensor) -> tf.Tensor:
    """Draws distinct numbers below `size`; every set is equally likely.

    Floyd's algorithm (Bentley and Floyd 1987): `count` draws, whatever the size.

    Args:
      size: int32 [n,1] or [1,1], at least `count`.
      draws: uniform in [0, 1), float32 [n,count,INDEX_DRAWS].

    Returns:
      int32 [n,count].
    """
    count = draws.shape[1]
    fine = (
        tf.cast(draws[..., 0], tf.float64) + tf.cast(draws[..., 1], tf.float64) / 2**23
    )
    chosen: list[tf.Tensor] = []
    for position in range(count):
        last = size[:, 0] - count + position
        drawn = tf.cast(fine[:, position] * tf.cast(last + 1, tf.float64), tf.int32)
        taken = tf.zeros_like(drawn, tf.bool)
        for other in chosen:
            taken |= drawn == other
        chosen.append(tf.where(taken, last, drawn))
    return tf.stack(chosen, axis=1)
