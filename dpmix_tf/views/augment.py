"""Base augmentations: KerasCV layers, by name, seeded.

KerasCV draws from TensorFlow's stateful global generator (and some layers from
`tf.random.uniform`, past any seed). Here every draw of a layer goes through `_Draws`, a
stand-in for its `_random_generator` keyed by one example's seed: the same seed gives
the same views, whatever else is in the batch, in any order, before or after a crash.
"""

from collections.abc import Callable

import keras
import keras_cv
import tensorflow as tf

from dpmix_tf.errors import DPMixError
from dpmix_tf.privacy import randomness


class _Draws:
    """The part of tf.random.Generator that KerasCV's layers use, without state.

    `begin(seed)` sets the example; each draw then takes the next sub-stream. The count
    advances while a graph is traced (or eagerly), never inside it.
    """

    def begin(self, seed: tf.Tensor) -> None:
        self._seed = seed
        self._count = 0

    def _next(self) -> tf.Tensor:
        self._count += 1
        return randomness.fold_in(self._seed, self._count)

    def uniform(self, shape, minval=0, maxval=None, dtype=tf.float32, name=None):
        return tf.random.stateless_uniform(
            shape, self._next(), minval, maxval, dtype, name=name, alg="philox"
        )

    def normal(self, shape, mean=0.0, stddev=1.0, dtype=tf.float32, name=None):
        return tf.random.stateless_normal(
            shape, self._next(), mean, stddev, dtype, name=name, alg="philox"
        )

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
    """Pads by reflection and crops back at an offset drawn uniformly for every image.

    `keras_cv.layers.RandomCrop` resamples: cropping 32 of 40 rows it steps 1.006 rows
    at a time, so that about a fifth of its crops skip a row, and its first and last
    offsets come up half as often as the others. The published augmentation is an exact
    crop.
    """

    def __init__(self, padding: int, **kwargs):
        super().__init__(**kwargs)
        self.padding = padding

    def get_random_transformation_batch(self, batch_size, **kwargs):
        """Draws (top, left) in [0, 2 * padding] for every image."""
        return self._random_generator.uniform(
            (batch_size, 2), 0, 2 * self.padding + 1, tf.int32
        )

    def augment_images(self, images, transformations, **kwargs):
        """Cuts [n,H,W,C] windows out of the padded images."""
        pad = [self.padding, self.padding]
        padded = tf.pad(images, [[0, 0], pad, pad, [0, 0]], mode="REFLECT")
        height, width = tf.shape(images)[1], tf.shape(images)[2]
        rows = transformations[:, :1] + tf.range(height)
        columns = transformations[:, 1:] + tf.range(width)
        cropped = tf.gather(padded, rows, axis=1, batch_dims=1)
        cropped = tf.gather(cropped, columns, axis=2, batch_dims=1)
        return tf.ensure_shape(cropped, images.shape)

    def augment_labels(self, labels, transformations, **kwargs):
        """A crop changes no label."""
        return labels


def _layers_of(
    name: str, image_shape: tuple[int, int, int], padding: int
) -> list[keras.layers.Layer]:
    """The KerasCV layers of a named augmentation, for pixel values in [0, 1]."""
    cv = keras_cv.layers
    height, width, _ = image_shape
    layers: dict[str, Callable[[], list[keras.layers.Layer]]] = {
        "none": lambda: [],
        "flip": lambda: [cv.RandomFlip("horizontal")],
        "affine": lambda: [
            cv.RandomRotation(10 / 360, fill_mode="reflect"),
            cv.RandomTranslation(1 / 16, 1 / 16, fill_mode="reflect"),
        ],
        "crop": lambda: [ReflectCrop(padding)],
        "crop_flip": lambda: [ReflectCrop(padding), cv.RandomFlip("horizontal")],
        "resized_crop_flip": lambda: [
            cv.RandomCropAndResize((height, width), (0.5, 1.0), (3 / 4, 4 / 3)),
            cv.RandomFlip("horizontal"),
        ],
        "crop_flip_cutout": lambda: [
            ReflectCrop(padding),
            cv.RandomFlip("horizontal"),
            cv.RandomCutout(0.5, 0.5),
        ],
        "crop_flip_color": lambda: [
            ReflectCrop(padding),
            cv.RandomFlip("horizontal"),
            cv.RandomColorJitter((0, 1), 0.2, 0.2, 0.2, 0.05),
        ],
        "randaugment": lambda: [
            ReflectCrop(padding),
            cv.RandomFlip("horizontal"),
            cv.RandAugment((0, 1), augmentations_per_image=2, magnitude=0.3),
        ],
    }
    if name not in layers:
        raise DPMixError(
            f"augment must be one of {', '.join(sorted(layers))}; received: {name!r}."
        )
    return layers[name]()


AUGMENTATIONS = (
    "none",
    "affine",
    "flip",
    "crop",
    "crop_flip",
    "crop_flip_color",
    "crop_flip_cutout",
    "randaugment",
    "resized_crop_flip",
)

# Colour operations read pixel values as lying in [0, 1]; geometry does not look at
# them.
_COLOURED = ("crop_flip_color", "randaugment")


class Augmentation:
    """A named base augmentation, ready for one image size.

    Args:
      name: one of AUGMENTATIONS.
      image_shape: (H, W, C) of the images.
      padding: pixels that crops may move by.
    """

    def __init__(self, name: str, image_shape: tuple[int, int, int], padding: int):
        height, width, channels = image_shape
        self._draws = _Draws()
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
                f"each edge, more than images of {height}x{width} have. Lower padding."
            )
        for layer in self._layers:
            self._seed_layer(layer)
            # Keras calls a new layer once more to build it; draws must not count that.
            self._draws.begin(tf.zeros([2], tf.int64))
            layer(tf.zeros(image_shape))

    def _seed_layer(self, layer: keras.layers.Layer) -> None:
        for part in layer._flatten_layers():
            for attribute, value in list(vars(part).items()):
                if isinstance(value, keras_cv.core.FactorSampler):
                    setattr(part, attribute, _SeededFactor(value, self._draws))
            part._random_generator = self._draws

    # Always a graph: eagerly, a layer that picks an operation draws only for that one.
    @tf.function(reduce_retracing=True)
    def __call__(self, images: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        """Augments copies of one example's images, each on its own.

        Args:
          images: float [K,H,W,C], K known while tracing.
          seed: int64 [2], the example's.

        Returns:
          float [K,H,W,C].
        """
        shape = images.shape
        for index, layer in enumerate(self._layers):
            own = randomness.fold_in(seed, index)
            if isinstance(layer, keras_cv.layers.VectorizedBaseImageAugmentationLayer):
                self._draws.begin(own)
                images = layer(images)
            else:
                images = self._one_by_one(layer, images, own)
            images = tf.ensure_shape(images, shape)
        return images

    def _one_by_one(self, layer, images, seed):
        # Layers that KerasCV writes for a single image would repeat one draw for all.
        def one(pair):
            image, number = pair
            self._draws.begin(randomness.fold_in(seed, number))
            return layer(image)

        return tf.map_fn(
            one,
            (images, tf.range(tf.shape(images)[0])),
            fn_output_signature=tf.TensorSpec(images.shape[1:], images.dtype),
        )
