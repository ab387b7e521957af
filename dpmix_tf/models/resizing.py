"""Bicubic resizing that every runtime supports, as two matrix products."""

import keras
import numpy as np
import tensorflow as tf


@keras.saving.register_keras_serializable(package="dpmix_tf")
class BicubicResizing(keras.layers.Layer):
    """Resizes images as keras.ops.image.resize does, with constant matrices.

    LiteRT has no bicubic resizing of its own, but bicubic resizing is linear in the
    pixels, first of each column, then of each row.

    Input: float [n,H,W,C], H and W known.
    Output: float32 [n,height,width,C].

    Args:
      height: pixels.
      width: pixels.
      **kwargs: of keras.layers.Layer.
    """

    def __init__(self, height: int, width: int, *, dtype="float32", **kwargs):
        # Whatever the global policy: pixels have eight bits, all that bfloat16 has.
        super().__init__(dtype=dtype, **kwargs)
        self.height, self.width = height, width

    def build(self, input_shape):
        """Creates the matrices, as constants."""
        self._rows = _matrix(input_shape[1], self.height)
        self._columns = _matrix(input_shape[2], self.width)
        super().build(input_shape)

    def compute_output_shape(self, input_shape):
        """(n, height, width, C)."""
        return (input_shape[0], self.height, self.width, input_shape[3])

    def call(self, images):
        """See the class."""
        x = tf.tensordot(images, self._columns, [[2], [0]])  # [n,H,C,width]
        x = tf.tensordot(x, self._rows, [[1], [0]])  # [n,C,width,height]
        return tf.transpose(x, [0, 3, 2, 1])

    def get_config(self):
        """The arguments."""
        return super().get_config() | {"height": self.height, "width": self.width}


def _matrix(length: int, resized: int) -> np.ndarray:
    """The weights of input pixels in each of `resized`: float32 [length,resized]."""
    with tf.init_scope():
        each = np.eye(length, dtype=np.float32)[..., np.newaxis]
        return tf.image.resize(each, (resized, length), "bicubic").numpy()[..., 0].T
