"""Layers whose constants are measured on synthetic images, never on data."""

import functools
import json
from collections.abc import Sequence

import keras
import numpy as np
import tensorflow as tf

from dpmix_tf.synthetic import dead_leaves
from dpmix_tf.synthetic.leaves import VERSION as LEAVES_VERSION
from dpmix_tf.values import without_names

# Raise it whenever the layers measure something else.
_VERSION = 2
_KEPT = 8  # sets of constants that a process remembers
_IMAGES = 3000  # at 32x32 pixels, fewer of larger ones
_FEWEST = 600

_constants: dict[str, list[np.ndarray]] = {}


def versions() -> dict[str, int]:
    """What the constants depend on beside the layers' arguments."""
    return {"leaves": LEAVES_VERSION, "layers": _VERSION}


def leaf_images(
    image_shape: Sequence[int], seed: int, count: int | None = None
) -> np.ndarray:
    """Dead leaves to measure on, uint8 [n,H,W,C].

    Args:
      image_shape: (H, W, C).
      seed: of the images.
      count: n; by default 3,000 of 32x32 pixels, and fewer of larger ones, down to 600.
    """
    height, width, _ = image_shape
    if count is None:
        count = _IMAGES * 32 * 32 // (height * width)
        count = min(max(count, _FEWEST), _IMAGES)
    return _leaf_images(tuple(image_shape), seed, count)


@functools.lru_cache(maxsize=2)
def _leaf_images(image_shape, seed, count) -> np.ndarray:
    return dead_leaves(count, image_shape, seed=seed)


def clear_constants() -> None:
    """Forgets the constants that this process has measured."""
    _constants.clear()


class Measured(keras.layers.Layer):
    """A layer that holds constants, made from its arguments and the images' shape.

    They are weights that are never trained, so that they are saved with the network;
    where a saved network is loaded, they are read and not measured again. A subclass
    creates them in `create` and computes their values in `measure`.
    """

    def __init__(self, *, dtype="float32", **kwargs):
        # Whatever the global policy: sums of many products, and constants.
        super().__init__(dtype=dtype, **kwargs)
        self._to_be_loaded = False

    def create(self, input_shape: tuple[int, ...]) -> list[keras.Variable]:
        """Creates the layer's own constants."""
        return []

    def measure(self, input_shape: tuple[int, ...]) -> list[np.ndarray]:
        """Computes their values, in the same order."""
        return []

    def constant(self, name: str, shape: Sequence[int]) -> keras.Variable:
        """Creates one constant, to be filled."""
        return self.add_weight(
            shape=tuple(shape), initializer="zeros", trainable=False, name=name
        )

    def build(self, input_shape):
        """Creates the constants, and measures them unless they are to be loaded."""
        created = self.create(tuple(input_shape))
        if not created or self._to_be_loaded:
            return
        key = json.dumps(
            [type(self).__name__, without_names(self.get_config()), input_shape[1:]]
        )
        if key not in _constants:
            with tf.init_scope():
                values = self.measure(tuple(input_shape))
            while len(_constants) >= _KEPT:
                _constants.pop(next(iter(_constants)))
            _constants[key] = values
        for variable, value in zip(created, _constants[key], strict=True):
            variable.assign(value.astype(np.float32))

    def build_from_config(self, config):
        """Creates the constants of a saved layer, whose values are then loaded."""
        self._to_be_loaded = True
        try:
            super().build_from_config(config)
        finally:
            self._to_be_loaded = False


class Chain(Measured):
    """A layer around other layers, of which each takes what the one before returns.

    Args:
      layers: the inner layers.
      **kwargs: of keras.layers.Layer.
    """

    def __init__(self, layers: Sequence[keras.layers.Layer], **kwargs):
        super().__init__(**kwargs)
        self.inner = list(layers)

    def create(self, input_shape):
        """Builds the inner layers."""
        shape = tuple(input_shape)
        for layer in self.inner:
            if layer.built:  # it is used elsewhere too
                pass
            elif self._to_be_loaded:
                layer.build_from_config({"input_shape": shape})
            else:
                layer.build(shape)
            shape = tuple(layer.compute_output_shape(shape))
        return []

    def run(self, inputs):
        """Calls the inner layers."""
        for layer in self.inner:
            inputs = layer(inputs)
        return inputs

    def compute_output_shape(self, input_shape):
        """That of the last inner layer."""
        for layer in self.inner:
            input_shape = layer.compute_output_shape(input_shape)
        return tuple(input_shape)

    def get_config(self):
        """The arguments."""
        inner = [keras.saving.serialize_keras_object(layer) for layer in self.inner]
        for layer in inner:
            layer.pop("build_config", None)  # they are built with this layer
        return super().get_config() | {"layers": inner}

    @classmethod
    def from_config(cls, config):
        """Makes the layer from `get_config`."""
        inner = [
            keras.saving.deserialize_keras_object(layer) for layer in config["layers"]
        ]
        return cls(**{**config, "layers": inner})
