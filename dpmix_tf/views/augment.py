"""Base augmentations: seeded KerasCV layers, by name.

KerasCV draws from TensorFlow's stateful global generator (and some layers from
`tf.random.uniform`, bypassing any seed). Here every draw of a layer goes through
`_Draws`, a stand-in for its `_random_generator` that takes an image's numbers from a
table derived from its example's seed: the same seed gives the same views, whatever else
is in the batch, in any order, before or after a crash.
"""

import functools
from collections.abc import Callable

import keras
import keras_cv
import numpy as np
import tensorflow as tf

from dpmix_tf.errors import DPMixError


class _Draws:
    """The part of tf.random.Generator that KerasCV's layers use, without state.

    A draw takes the next columns of a table of uniform numbers that has one row per
    image, so that no image's draw can depend on another's. Columns are counted while a
    graph is traced, never inside it. Without a table, draws are constant and only
    counted: `taken` then says how many columns a layer needs.
    """

    def __init__(self) -> None:
        self.begin(None)

    def begin(self, table: tf.Tensor | None, *, one_image: bool = False) -> None:
        """Starts a layer's draws; set `one_image` if its shapes have no batch axis."""
        self._table, self._one_image = table, one_image
        self.taken = 0

    def _take(self, shape) -> tf.Tensor:
        shape = list(shape) if isinstance(shape, (tuple, list)) else tf.unstack(shape)
        # A size unknown while tracing is the number of images: all rows, or one image.
        sizes = [tf.get_static_value(size) or 1 for size in shape]
        columns = int(np.prod(sizes if self._one_image else sizes[1:], dtype=int))
        start, self.taken = self.taken, self.taken + columns
        if self._table is None:
            return tf.fill(shape, 0.5)
        return tf.reshape(self._table[:, start : self.taken], shape)

    def uniform(self, shape, minval=0, maxval=None, dtype=tf.float32, name=None):
        """Draws from [minval, maxval); `shape` starts with the number of images."""
        maxval = 1 if maxval is None else maxval
        unit, dtype = self._take(shape), tf.as_dtype(dtype)
        low, high = tf.cast(minval, tf.float32), tf.cast(maxval, tf.float32)
        value = low + unit * (high - low)
        return tf.cast(tf.floor(value) if dtype.is_integer else value, dtype)

    def normal(self, shape, mean=0.0, stddev=1.0, dtype=tf.float32, name=None):
        """Draws normal numbers: quantiles of the middles of uniform numbers' cells."""
        unit = tf.math.ndtri(self._take(shape) + 2.0**-24)
        return tf.cast(mean + stddev * unit, dtype)

    random_uniform, random_normal = uniform, normal


class _SeededFactor(keras_cv.core.FactorSampler):
    """A KerasCV factor sampler that draws from `_Draws` instead of tf.random."""

    def __init__(self, sampler: keras_cv.core.FactorSampler, draws: _Draws):
        self._sampler = sampler
        self._draws = draws

    def __call__(self, shape=(), dtype="float32"):
        sampler = self._sampler
        if isinstance(sampler, keras_cv.core.UniformFactorSampler):
            return self._draws.uniform(shape, sampler.lower, sampler.upper, dtype)
        if isinstance(sampler, keras_cv.core.NormalFactorSampler):
            value = self._draws.normal(shape, sampler.mean, sampler.stddev, dtype)
            return tf.clip_by_value(value, sampler.min_value, sampler.max_value)
        return sampler(shape, dtype)


class ReflectCrop(keras_cv.layers.VectorizedBaseImageAugmentationLayer):
    """Pads by reflection, crops at a random offset, and mirrors a random half.

    `keras_cv.layers.RandomCrop` resamples: when it crops 32 of 40 rows it steps 1.006
    rows at a time, so about a fifth of its crops skip a row, and its first and last
    offsets occur half as often as the others. The published augmentation is an exact
    crop. Here padding, crop and flip are a single gather, which is several times faster
    than the three layers in sequence and makes no padded copy.

    Args:
      padding: pixels by which the crop may move.
      flip: mirror half of the images, left to right.
    """

    def __init__(self, padding: int, *, flip: bool = False, **kwargs):
        super().__init__(**kwargs)
        self.padding = padding
        self.flip = flip

    def get_random_transformation_batch(self, batch_size, **kwargs):
        """Draws (top, left, flip) for every image, int32 [n,3]."""
        offsets = self._random_generator.uniform(
            (batch_size, 2), -self.padding, self.padding + 1, tf.int32
        )
        mirrored = self._random_generator.uniform((batch_size, 1), 0, 2, tf.int32)
        return tf.concat([offsets, mirrored if self.flip else 0 * mirrored], axis=1)

    def augment_images(self, images, transformations, **kwargs):
        """Gathers each output image's pixels from its own input, [n,H,W,C]."""
        _, height, width, channels = images.shape
        top, left, mirrored = tf.split(transformations, 3, axis=1)
        columns = tf.range(width)
        columns = tf.where(mirrored == 1, width - 1 - columns, columns)
        rows = _reflect(top + tf.range(height), height)
        columns = _reflect(left + columns, width)
        first = tf.range(tf.shape(images)[0])[:, tf.newaxis] * height
        pixels = ((first + rows) * width)[:, :, tf.newaxis] + columns[:, tf.newaxis]
        return tf.gather(tf.reshape(images, [-1, channels]), pixels)

    def augment_labels(self, labels, transformations, **kwargs):
        """Returns the labels unchanged."""
        return labels


def _reflect(index: tf.Tensor, size: int) -> tf.Tensor:
    """Mirrors indices outside [0, size) at its ends, which are not repeated."""
    return size - 1 - tf.abs(size - 1 - tf.abs(index))


def _color_jitter() -> keras.layers.Layer:
    return keras_cv.layers.RandomColorJitter((0, 1), 0.2, 0.2, 0.2, 0.05)


def _crop_and_resize(image_shape: tuple[int, int, int]) -> keras.layers.Layer:
    return keras_cv.layers.RandomCropAndResize(
        image_shape[:2], (0.5, 1.0), (3 / 4, 4 / 3)
    )


# Name -> KerasCV layers for an image shape and padding, for pixel values in [0, 1].
_LAYERS: dict[str, Callable[[tuple[int, int, int], int], list[keras.layers.Layer]]] = {
    "none": lambda shape, padding: [],
    "affine": lambda shape, padding: [
        keras_cv.layers.RandomRotation(10 / 360, fill_mode="reflect"),
        keras_cv.layers.RandomTranslation(1 / 16, 1 / 16, fill_mode="reflect"),
    ],
    "flip": lambda shape, padding: [keras_cv.layers.RandomFlip("horizontal")],
    "crop": lambda shape, padding: [ReflectCrop(padding)],
    "crop_flip": lambda shape, padding: [ReflectCrop(padding, flip=True)],
    "crop_flip_color": lambda shape, padding: [
        ReflectCrop(padding, flip=True),
        _color_jitter(),
    ],
    "crop_flip_cutout": lambda shape, padding: [
        ReflectCrop(padding, flip=True),
        keras_cv.layers.RandomCutout(0.5, 0.5),
    ],
    "randaugment": lambda shape, padding: [
        ReflectCrop(padding, flip=True),
        keras_cv.layers.RandAugment((0, 1), augmentations_per_image=2, magnitude=0.3),
    ],
    "resized_crop_flip": lambda shape, padding: [
        _crop_and_resize(shape),
        keras_cv.layers.RandomFlip("horizontal"),
    ],
}
AUGMENTATIONS = tuple(_LAYERS)


def _layers_of(
    name: str, image_shape: tuple[int, int, int], padding: int
) -> list[keras.layers.Layer]:
    """Returns the KerasCV layers of a named augmentation."""
    if name not in _LAYERS:
        raise DPMixError(
            f"augment must be one of {', '.join(AUGMENTATIONS)}; received: {name!r}."
        )
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("float32")  # whatever the global policy
    try:
        return _LAYERS[name](image_shape, padding)
    finally:
        keras.config.set_dtype_policy(before)


# Colour operations assume pixel values in [0, 1]; geometric ones do not depend on them.
_COLOURED = ("crop_flip_color", "randaugment")


class Augmentation:
    """A named base augmentation, ready for one image size.

    Args:
      name: one of AUGMENTATIONS.
      image_shape: (H, W, C) of the images.
      padding: pixels by which crops may move.

    Attributes:
      draws: uniform numbers that one image's augmentation uses.
    """

    def __init__(self, name: str, image_shape: tuple[int, int, int], padding: int):
        height, width, channels = image_shape
        self._layers = _layers_of(name, image_shape, padding)
        if name in _COLOURED and channels != 3:
            raise DPMixError(
                f"augment={name!r} changes colours and needs 3 channels; the images "
                f"have {channels}. Use 'crop' or 'crop_flip'."
            )
        crops = any(isinstance(layer, ReflectCrop) for layer in self._layers)
        if crops and min(height, width) <= padding:
            raise DPMixError(
                f"augment={name!r} with padding={padding} mirrors {padding} pixels at "
                f"each edge, too many for images of {height}x{width}. Lower padding."
            )
        self._draws = _Draws()
        self._columns = [self._columns_of(layer, image_shape) for layer in self._layers]
        self.draws = sum(self._columns)

    def _columns_of(self, layer: keras.layers.Layer, image_shape) -> int:
        """Makes a layer draw from `_Draws`; returns how many numbers an image needs."""
        for part in layer._flatten_layers():
            for attribute, value in list(vars(part).items()):
                if isinstance(value, keras_cv.core.FactorSampler):
                    setattr(part, attribute, _SeededFactor(value, self._draws))
            part._random_generator = self._draws

        @tf.function
        def count():
            image = tf.zeros(image_shape)
            if _is_vectorized(layer):
                image = image[tf.newaxis]
            for _ in range(2):  # Keras calls a new layer an extra time, to build it
                self._draws.begin(None, one_image=not _is_vectorized(layer))
                layer(image)

        count.get_concrete_function()
        return self._draws.taken

    # Always a graph: eagerly, a layer that picks one operation draws only for that one.
    @tf.function(reduce_retracing=True)
    def __call__(self, images: tf.Tensor, draws: tf.Tensor) -> tf.Tensor:
        """Augments images, each with its own numbers.

        Args:
          images: float [n,H,W,C].
          draws: uniform in [0, 1), float32 [n,self.draws].

        Returns:
          float [n,H,W,C].
        """
        shape = images.shape
        parts = tf.split(draws, self._columns, axis=1) if self._layers else []
        for layer, own in zip(self._layers, parts, strict=True):
            if _is_vectorized(layer):
                self._draws.begin(own)
                images = layer(images)
            else:
                images = self._one_by_one(layer, images, own)
            images = tf.ensure_shape(images, shape)
        return images

    def _one_by_one(self, layer, images, draws):
        # Layers that KerasCV writes for single images would use one draw for all.
        def one(pair):
            image, own = pair
            self._draws.begin(own[tf.newaxis], one_image=True)
            return layer(image)

        return tf.map_fn(
            one,
            (images, draws),
            fn_output_signature=tf.TensorSpec(images.shape[1:], images.dtype),
        )


def _is_vectorized(layer: keras.layers.Layer) -> bool:
    return isinstance(layer, keras_cv.layers.VectorizedBaseImageAugmentationLayer)


@functools.lru_cache(maxsize=64)
def augmentation(
    name: str, image_shape: tuple[int, int, int], padding: int
) -> Augmentation:
    """Returns the base augmentation of that name, cached."""
    return Augmentation(name, image_shape, padding)
