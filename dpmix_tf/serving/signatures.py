"""Signatures of a served model: images or encoded files in, names and scores out.

The graphs use only TensorFlow's own operations, because a server has no Python.
"""

from collections.abc import Callable, Sequence

import keras
import tensorflow as tf

from dpmix_tf.images import MOST_PIXELS, TWELVE_BITS
from dpmix_tf.pixels import as_float
from dpmix_tf.serving import orientation
from dpmix_tf.tasks import MULTI_LABEL, SINGLE_LABEL

_PNG = b"\x89PNG\r\n\x1a\n"
_JPEG = b"\xff\xd8\xff"


def add_signatures(
    archive: keras.export.ExportArchive,
    network: keras.Model,
    class_names: Sequence[str],
    image_shape: tuple[int, int, int],
    task: str = SINGLE_LABEL,
) -> None:
    """Adds a classifier's signatures to an archive.

    `serving_default` takes `images`, uint8 [n,H,W,C]; `serving_float` takes `images`,
    float32 [n,H,W,C] in [0, 1]; `serving_bytes` takes `image_bytes`, string [n], each a
    JPEG or PNG file of any size. All return

      probabilities: float32 [n,classes], in the order of class_names.txt;
      classes: string [n,classes], most probable first;
      scores: float32 [n,classes], the probabilities of `classes`.

    The last two have the names and shapes of TensorFlow Serving's Classify results.

    Args:
      archive: receives the signatures and, as an asset, class_names.txt.
      network: float images [n,H,W,C] in [0, 1] -> logits [n,classes].
      class_names: names in the order of the labels.
      image_shape: (H, W, C).
      task: see `probabilities_of`.
    """
    # In memory, because a SavedModel records the path that an asset came from.
    names_file = "ram://dpmix_tf/class_names.txt"
    if tf.io.gfile.exists(names_file):  # from an earlier export; "w" would append
        tf.io.gfile.remove(names_file)
    with tf.io.gfile.GFile(names_file, "w") as file:
        file.write("".join(f"{name}\n" for name in class_names))
    names = tf.lookup.StaticHashTable(
        tf.lookup.TextFileInitializer(
            names_file,
            tf.int64,
            tf.lookup.TextFileIndex.LINE_NUMBER,
            tf.string,
            tf.lookup.TextFileIndex.WHOLE_LINE,
        ),
        default_value="",
    )
    archive.track(network)
    archive.track(names)

    def classify(images):
        probabilities = probabilities_of(network, images, task)
        scores, order = tf.math.top_k(probabilities, probabilities.shape[-1])
        return {
            "probabilities": probabilities,
            "classes": names.lookup(tf.cast(order, tf.int64)),
            "scores": scores,
        }

    def classify_floats(images):
        within = tf.debugging.Assert(
            tf.reduce_all((images >= 0) & (images <= 1)),
            ["Float images must lie in [0, 1]. Send images in 0..255 as uint8."],
        )
        with tf.control_dependencies([within]):
            return classify(tf.identity(images))

    def classify_bytes(image_bytes):
        return classify(decode(image_bytes, image_shape))

    def spec(dtype, name, shape=()):
        return [tf.TensorSpec([None, *shape], dtype, name=name)]

    endpoints: list[tuple[str, Callable, list[tf.TensorSpec]]] = [
        ("serving_default", classify, spec(tf.uint8, "images", image_shape)),
        ("serving_float", classify_floats, spec(tf.float32, "images", image_shape)),
        ("serving_bytes", classify_bytes, spec(tf.string, "image_bytes")),
    ]
    for name, function, signature in endpoints:
        archive.add_endpoint(name, function, input_signature=signature)


def probabilities_of(
    network: keras.Model, images: tf.Tensor, task: str = SINGLE_LABEL
) -> tf.Tensor:
    """Computes float32 [n,classes] from uint8 or float images [n,H,W,C].

    They sum to 1 over the classes; of several labels each has its own.
    """
    logits = tf.cast(network(as_float(images), training=False), tf.float32)
    return tf.sigmoid(logits) if task == MULTI_LABEL else tf.nn.softmax(logits)


def decode(image_bytes: tf.Tensor, image_shape: tuple[int, int, int]) -> tf.Tensor:
    """Decodes, rotates upright and resizes images in a graph, like images.read_image.

    Args:
      image_bytes: string [n], JPEG or PNG files.
      image_shape: (H, W, C), C of 1 or 3.

    Returns:
      uint8 [n,H,W,C]. Where an image is resized, pixels may differ from read_image's
      by one or two, because Pillow resizes in integers.

    Raises:
      tf.errors.InvalidArgumentError: a file is broken or has another format, more than
        images.MOST_PIXELS pixels, or 12 bits stored in 16.
    """
    return tf.map_fn(
        lambda data: _decode_one(data, image_shape),
        image_bytes,
        fn_output_signature=tf.TensorSpec(image_shape, tf.uint8),
    )


def _decode_one(data: tf.Tensor, image_shape: tuple[int, int, int]) -> tf.Tensor:
    height, width, channels = image_shape
    padded = data + b"\0" * 32  # long enough for the substrings below
    is_png = tf.strings.substr(padded, 0, len(_PNG)) == _PNG
    is_jpeg = tf.strings.substr(padded, 0, len(_JPEG)) == _JPEG
    known = tf.debugging.Assert(
        is_png | is_jpeg, ["Broken image: neither a JPEG nor a PNG file."]
    )
    with tf.control_dependencies([known]):
        size = tf.cond(
            is_png,
            lambda: _png_size(padded),
            lambda: tf.cast(tf.io.extract_jpeg_shape(data)[:2], tf.int64),
        )
    small = tf.debugging.Assert(
        tf.reduce_prod(size) <= MOST_PIXELS,
        [f"Unsuitable image: more than {MOST_PIXELS:,} pixels. Shrink it", size],
    )
    with tf.control_dependencies([small]):
        pixels = tf.cond(
            is_png,
            lambda: _decode_png(data, deep=tf.strings.substr(padded, 24, 1) == b"\x10"),
            lambda: tf.cast(
                tf.io.decode_jpeg(data, channels=3, dct_method="INTEGER_ACCURATE"),
                tf.int32,
            ),
        )
    # Floats, which oneDNN transposes on every processor without a word.
    pixels = tf.cast(pixels, tf.float32)
    pixels = orientation.upright(pixels, orientation.of_file(data, is_png))
    if channels == 1:  # ITU-R 601 luma with Pillow's rounding
        weights = tf.constant([19595, 38470, 7471], tf.int32)
        total = tf.reduce_sum(tf.cast(pixels, tf.int32) * weights, -1, keepdims=True)
        pixels = (total + 2**15) // 2**16
    resized = tf.image.resize(
        tf.cast(pixels, tf.float32),
        (height, width),
        method=tf.image.ResizeMethod.LANCZOS3,
        antialias=True,
    )
    return tf.cast(tf.clip_by_value(tf.round(resized), 0.0, 255.0), tf.uint8)


def _decode_png(data: tf.Tensor, deep: tf.Tensor) -> tf.Tensor:
    """Decodes to int32 [h,w,3] in [0, 255]; of 16 bits it keeps the higher 8.

    Args:
      data: scalar string.
      deep: scalar bool, whether the file has 16 bits per channel.
    """
    pixels = tf.cast(tf.io.decode_png(data, channels=3, dtype=tf.uint16), tf.int32)
    brightest = tf.reduce_max(pixels)
    stretched = tf.debugging.Assert(
        ~deep | (brightest > TWELVE_BITS),
        [
            "Unsuitable image: it uses only 12 of its 16 bits. Stretch it to 16 bits, "
            "or convert it to 8"
        ],
    )
    with tf.control_dependencies([stretched]):
        return pixels // 256


def _png_size(data: tf.Tensor) -> tf.Tensor:
    """Reads (height, width) from the header of a PNG file: int64 [2]."""
    numbers = tf.io.decode_raw(
        tf.strings.substr(data, 16, 8), tf.int32, little_endian=False
    )
    return tf.cast(tf.bitcast(numbers[::-1], tf.uint32), tf.int64)
