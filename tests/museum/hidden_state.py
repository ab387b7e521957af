"""Exhibits: a network keeps values of private images without clipping or noise.

The checks look at what a network holds after DPMixModel has received it, not at how
validation works.
"""

import contextlib
from unittest import mock

import keras
import numpy as np
import tensorflow as tf

from dpmix_tf.errors import DPMixError
from dpmix_tf.models import validate
from tests.museum.exhibits import Exhibit, _digits, _model


class KeepsPeak(keras.layers.Layer):
    """Keeps the largest value of a batch where Keras does not look for variables."""

    def __init__(self):
        super().__init__()
        self.kept = {"peak": [tf.Variable(0.0)]}

    def call(self, x):
        self.kept["peak"][0].assign(tf.reduce_max(x))
        return x


def _network(layer):
    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layer,
            keras.layers.Flatten(),
            keras.layers.Dense(10),
        ]
    )


def hidden_variables():
    """The value of a layer's plain tf.Variable after a clipped sum."""
    layer = KeepsPeak()
    source = _digits()
    try:
        model = _model(source, network=_network(layer))
    except DPMixError as error:
        return False, f"rejected: {str(error)[:60]}..."
    layer.kept["peak"][0].assign(0.0)
    model.clipped_gradient_sum(*source.read(np.arange(5)))
    kept = float(layer.kept["peak"][0].numpy())
    return kept > 0, f"the network holds the brightest private pixel: {kept:.3f}"


def adapted_statistics():
    """The statistics in a Normalization layer that was adapted to private images."""
    source = _digits()
    images = source.read(np.arange(len(source)))[0] / np.float32(255)
    layer = keras.layers.Normalization(axis=None)
    layer.adapt(images)
    try:
        model = _model(source, network=_network(layer))
    except DPMixError as error:
        return False, f"rejected: {str(error)[:60]}..."
    mean = float(np.asarray(model.network.layers[0].adapt_mean))
    apart = abs(mean - float(images.mean()))
    return apart < 1e-4, f"the network holds the private mean to within {apart:.1g}"


@contextlib.contextmanager
def writes_not_looked_for():
    with mock.patch.object(validate, "_refuse", lambda network, effects: None):
        yield


@contextlib.contextmanager
def adapted_not_looked_for():
    with mock.patch.object(validate, "_adapted", lambda layer: None):
        yield


EXHIBITS = [
    Exhibit(
        "state in a variable that Keras does not track, accepted",
        writes_not_looked_for,
        hidden_variables,
    ),
    Exhibit(
        "a layer adapted to private images, accepted",
        adapted_not_looked_for,
        adapted_statistics,
    ),
]
