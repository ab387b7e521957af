"""Scattering features against Kymatio's, and as a layer of a network."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from kymatio.numpy import Scattering2D

from dpmix_tf.errors import DPMixError
from dpmix_tf.models.scattering import Scattering


@pytest.mark.parametrize("shape", [(32, 32, 3), (28, 28, 1), (24, 40, 2), (8, 8, 1)])
def test_features_are_kymatios(shape):
    images = np.random.default_rng(0).random((3, *shape), dtype=np.float32)
    reference = Scattering2D(J=2, shape=shape[:2], L=8)
    wanted = reference(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
    height, width, channels = shape
    wanted = wanted.reshape(3, 81 * channels, height // 4, width // 4)
    layer = Scattering()
    got = layer(images).numpy()
    assert got.shape == layer.compute_output_shape(images.shape)
    # Kymatio takes 3.1415 for pi, which is three in a hundred thousand off.
    np.testing.assert_allclose(got, wanted.transpose(0, 2, 3, 1), atol=1e-4)
    assert wanted.std() > 0.05


def test_a_shift_by_a_whole_step_shifts_the_features():
    image = np.zeros((1, 64, 64, 1), np.float32)
    image[0, 24:32, 20:36] = np.random.default_rng(0).random((8, 16, 1))
    layer = Scattering()
    moved = layer(np.roll(image, (4, 8), (1, 2)))
    np.testing.assert_allclose(
        moved[:, 6:, 6:], layer(image)[:, 5:-1, 4:-2], rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize("shape", [(30, 32, 3), (4, 4, 1), (128, 128, 1)])
def test_other_sizes_are_refused(shape):
    with pytest.raises(DPMixError, match="multiples of 4 from 8 to 96"):
        Scattering()(np.zeros((1, *shape), np.float32))


def test_it_stays_in_float32_and_is_saved(tmp_path):
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        inputs = keras.Input((16, 16, 1))
        network = keras.Model(inputs, Scattering()(inputs))
    finally:
        keras.config.set_dtype_policy("float32")
    images = np.random.default_rng(0).random((2, 16, 16, 1), dtype=np.float32)
    features = network(images)
    assert features.dtype == tf.float32
    np.testing.assert_array_equal(features, Scattering()(images))
    network.save(tmp_path / "x.keras")
    again = keras.models.load_model(tmp_path / "x.keras")
    np.testing.assert_array_equal(features, again(images))
    assert not network.variables
