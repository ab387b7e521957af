"""Finds the EXIF orientation of an encoded image and undoes it, inside a graph.

It uses only TensorFlow's own operations, like serving.signatures;
images.exif_orientation is the same rule in Python.
"""

import tensorflow as tf

from dpmix_tf.images import ORIENTATION_TAG

_EXIF = b"Exif\0\0"
_PADDING = b"\0" * 32  # so that reads beyond the end find zeros
_ENTRY = 12  # bytes per directory entry


def of_file(data: tf.Tensor, is_png: tf.Tensor) -> tf.Tensor:
    """Finds a file's orientation.

    Args:
      data: scalar string, a JPEG or PNG file.
      is_png: scalar bool.

    Returns:
      int64 scalar, 1 to 8; 1 (upright) where the file does not say.
    """
    file = _Bytes(data)
    at = tf.cond(is_png, lambda: _exif_in_png(file), lambda: _exif_in_jpeg(file))
    at = tf.where(file.part(at, len(_EXIF)) == _EXIF, at + len(_EXIF), at)
    little = file.part(at, 2) == b"II"
    first = at + file.number(at + 4, 4, little) + 2
    count = file.number(first - 2, 2, little)
    entries = tf.io.decode_raw(file.part(first, _ENTRY * count), tf.uint8)
    whole = _ENTRY * (tf.size(entries) // _ENTRY)
    entries = tf.cast(tf.reshape(entries[:whole], [-1, _ENTRY]), tf.int64)

    def short(column):
        low, high = entries[:, column], entries[:, column + 1]
        return tf.where(little, low + 256 * high, 256 * low + high)

    # The tag's first entry counts; 1 is the default where there is none.
    values = tf.boolean_mask(short(8), short(0) == ORIENTATION_TAG)
    value = tf.concat([values, [1]], 0)[0]
    known = (little | (file.part(at, 2) == b"MM")) & (value >= 1) & (value <= 8)
    return tf.where(known, value, 1)


def upright(pixels: tf.Tensor, orientation: tf.Tensor) -> tf.Tensor:
    """Undoes an orientation: [h,w,C] to [h,w,C] or [w,h,C]."""

    def if_one_of(orientations, change, image):
        asked = tf.reduce_any(orientation == tf.constant(orientations, tf.int64))
        return tf.cond(asked, lambda: change(image), lambda: image)

    pixels = if_one_of(
        [5, 6, 7, 8], lambda image: tf.transpose(image, [1, 0, 2]), pixels
    )
    pixels = if_one_of([2, 3, 6, 7], lambda image: image[:, ::-1], pixels)
    return if_one_of([3, 4, 7, 8], lambda image: image[::-1], pixels)


class _Bytes:
    """Reads numbers and parts of a string at any position."""

    def __init__(self, data: tf.Tensor):
        self.length = tf.cast(tf.strings.length(data), tf.int64)
        self._padded = data + _PADDING

    def part(self, at, size):
        at = tf.clip_by_value(at, 0, self.length)
        return tf.strings.substr(self._padded, at, tf.cast(size, tf.int64))

    def number(self, at, size: int, little=False):
        """An unsigned integer of `size` bytes, int64."""
        digits = tf.cast(tf.io.decode_raw(self.part(at, size), tf.uint8), tf.int64)
        powers = tf.constant([256**power for power in range(size)], tf.int64)
        return tf.reduce_sum(digits * tf.where(little, powers, powers[::-1]))


def _exif_in_jpeg(file: _Bytes) -> tf.Tensor:
    """Finds the EXIF segment; returns the end of the file where there is none."""

    def has_exif(at):
        return (file.part(at, 2) == b"\xff\xe1") & (file.part(at + 4, 6) == _EXIF)

    def goes_on(at):
        marker = file.part(at, 2)
        last = (marker == b"\xff\xda") | (marker == b"\xff\xd9")  # pixels, end
        return (file.part(at, 1) == b"\xff") & ~last & ~has_exif(at)

    def following(at):
        filler = file.part(at, 2) == b"\xff\xff"
        return tf.where(filler, at + 1, at + 2 + file.number(at + 2, 2))

    at = tf.while_loop(goes_on, lambda at: [following(at)], [tf.constant(2, tf.int64)])
    return tf.where(has_exif(at[0]), at[0] + 4, file.length)


def _exif_in_png(file: _Bytes) -> tf.Tensor:
    """Finds the EXIF chunk; returns the end of the file where there is none."""

    def goes_on(at):
        return (at < file.length) & (file.part(at + 4, 4) != b"eXIf")

    def following(at):
        return at + 12 + file.number(at, 4)

    at = tf.while_loop(goes_on, lambda at: [following(at)], [tf.constant(8, tf.int64)])
    return at[0] + 8
