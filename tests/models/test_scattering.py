"""Scattering features against Kymatio's, and as a layer of a network."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from kymatio.numpy import Scattering2D

from dpmix_tf.errors import DPMixError
from dpmix_tf.models.scattering import Scattering


@pytest.mark.parametrize(
    ("shape", "scales"),
    [
        ((32, 32, 3), 2),
        ((28, 28, 1), 2),
        ((24, 40, 2), 2),
        ((8, 8, 1), 2),
        ((32, 32, 2), 3),
        ((28, 20, 1), 3),
        ((16, 40, 1), 3),
    ],
)
def test_features_are_kymatios(shape, scales):
    images = np.random.default_rng(0).random((3, *shape), dtype=np.float32)
    reference = Scattering2D(J=scales, shape=shape[:2], L=8)
    wanted = reference(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
    wanted = wanted.reshape(3, -1, *wanted.shape[-2:])
    layer = Scattering(scales)
    got = layer(images).numpy()
    assert got.shape == layer.compute_output_shape(images.shape)
    # Kymatio takes 3.1415 for pi, which is three in a hundred thousand off.
    np.testing.assert_allclose(got, wanted.transpose(0, 2, 3, 1), atol=3e-5)
    assert wanted.std() > 0.03


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
    with pytest.raises(DPMixError, match="2 or 3 scales"):
        Scattering(4)


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
