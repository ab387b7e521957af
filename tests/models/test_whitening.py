"""Layers whose constants need no data: each against plain NumPy, saved and loaded."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from dpmix_tf.models import (
    LogMagnitude,
    MirrorAverage,
    OpponentColours,
    PatchBank,
    Scattering,
    Whitening,
)
from dpmix_tf.models.measured import clear_constants, leaf_images
from dpmix_tf.synthetic import dead_leaves


def random_images(*shape, seed=0):
    return np.random.default_rng(seed).random(shape, dtype=np.float32)


def test_opponent_colours_are_a_rotation_and_grey_is_left_alone():
    images = random_images(2, 8, 8, 3)
    red, green, blue = np.moveaxis(images, -1, 0)
    wanted = [
        (red + green + blue) / np.sqrt(3),
        (red - blue) / np.sqrt(2),
        (red - 2 * green + blue) / np.sqrt(6),
    ]
    np.testing.assert_allclose(
        OpponentColours()(images), np.stack(wanted, -1), atol=1e-6
    )
    grey = random_images(2, 8, 8, 1)
    np.testing.assert_allclose(OpponentColours()(grey), grey, atol=1e-7)


def test_other_channels_are_whitened_by_the_leaves():
    leaves = dead_leaves(200, (32, 32, 5), seed=9).astype(np.float32) / 255
    before = np.cov(leaves.reshape(-1, 5).T)
    after = np.cov(OpponentColours()(leaves).numpy().reshape(-1, 5).T)

    def uncorrelated(c):
        return np.abs(c - np.diag(np.diag(c))).max() / np.diag(c).mean()

    assert uncorrelated(after) < 0.2 < uncorrelated(before)
    assert 0.7 < np.trace(after) / np.trace(before) < 1.4


def test_mirror_averages_are_the_same_for_mirror_images():
    bank = PatchBank(8, images=50)
    layer = MirrorAverage([bank])
    images = random_images(3, 16, 12, 3)
    mirrored = np.ascontiguousarray(images[:, :, ::-1])
    wanted = (bank(images).numpy() + bank(mirrored).numpy()) / 2
    np.testing.assert_allclose(layer(images), wanted, atol=1e-6)
    np.testing.assert_allclose(layer(mirrored), wanted, atol=1e-6)


def test_logarithms_are_of_magnitudes_above_a_floor():
    layer = LogMagnitude(0.01)
    x = np.array([[0.0, 0.5, -0.5, 100.0]], np.float32)
    np.testing.assert_allclose(layer(x), np.log(np.abs(x) + 0.01), rtol=1e-6)
    assert layer.compute_output_shape((None, 3, 2)) == (None, 3, 2)
    assert LogMagnitude.from_config(layer.get_config()).floor == 0.01


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_whitening_is_what_numpy_computes(power):
    inner = [OpponentColours(), Scattering()]
    layer = Whitening(inner, norm=3.0, power=power, images=60, seed=5)
    images = random_images(4, 16, 12, 3)
    got = layer(images).numpy()

    def features(x):
        return Scattering()(OpponentColours()(x)).numpy().astype(np.float64)

    on_leaves = features(leaf_images((16, 12, 3), 5, 60).astype(np.float32) / 255)
    f = on_leaves.reshape(-1, 243)
    mean, deviation = f.mean(0), f.std(0)
    correlation = np.corrcoef(f.T)
    ridge = 1e-3 * np.trace(correlation) / 243 * np.eye(243)
    values, vectors = np.linalg.eigh(correlation + ridge)
    root = vectors @ np.diag(values ** (-power / 2)) @ vectors.T
    matrix = np.diag(1 / deviation) @ root

    def whitened(x):
        return ((x - mean) @ matrix).reshape(len(x), -1)

    scale = 3.0 / np.sqrt(np.square(whitened(on_leaves)).sum(axis=1).mean())
    wanted = scale * whitened(features(images)).reshape(got.shape)
    np.testing.assert_allclose(got, wanted, rtol=1e-3, atol=1e-3 * np.abs(wanted).max())
    z = layer(leaf_images((16, 12, 3), 5, 60).astype(np.float32) / 255).numpy()
    norms = np.linalg.norm(z.reshape(60, -1), axis=1)
    assert np.sqrt(np.mean(norms**2)) == pytest.approx(3.0, rel=1e-3)


@pytest.mark.parametrize("shape", [(11, 14, 3), (8, 8, 1), (13, 12, 5)])
def test_patches_are_what_numpy_computes(shape):
    layer = PatchBank(300, threshold=0.4, images=50)  # in three groups
    images = random_images(2, *shape)
    got = layer(images).numpy()
    rows, columns, channels = shape[0] - 5, shape[1] - 5, shape[2]
    kernel = layer.kernel.numpy().reshape(6, 6, channels, 300).astype(np.float64)
    responses = np.zeros((2, rows, columns, 300))
    for i in range(rows):
        for j in range(columns):
            patch = images[:, i : i + 6, j : j + 6].astype(np.float64)
            patch -= patch.mean(axis=(1, 2, 3), keepdims=True)
            spread = np.sqrt((patch**2).mean(axis=(1, 2, 3)) + 10 / 255**2)
            r = np.einsum("nijc,ijcf->nf", patch, kernel)
            responses[:, i, j] = r / spread[:, np.newaxis]
    sides = np.concatenate(
        [np.maximum(responses - 0.4, 0), np.maximum(-responses - 0.4, 0)], axis=-1
    )
    long, wide = (max(1, round(length / 3)) for length in (rows, columns))
    for a in range(4):
        for b in range(4):
            top, left = round(a * (rows - long) / 3), round(b * (columns - wide) / 3)
            square = sides[:, top : top + long, left : left + wide]
            np.testing.assert_allclose(
                got[:, a, b], square.mean(axis=(1, 2)), atol=1e-4
            )


def test_filters_are_whitened_patches_of_leaves():
    """Responses to leaves vary by about 0.9, and a fifth passes on each side."""
    layer = PatchBank(64)
    images = dead_leaves(60, (32, 32, 3), seed=8).astype(np.float32) / 255
    layer.build((None, 32, 32, 3))
    kernel = layer.kernel.numpy()
    assert np.abs(kernel.mean(axis=0)).max() < 1e-6
    patches = np.lib.stride_tricks.sliding_window_view(images, (6, 6), axis=(1, 2))
    patches = patches[:, ::3, ::3].transpose(0, 1, 2, 4, 5, 3).reshape(-1, 108)
    patches = patches - patches.mean(axis=1, keepdims=True)
    patches /= np.sqrt((patches**2).mean(axis=1, keepdims=True) + 10 / 255**2)
    responses = patches @ kernel
    assert 0.8 < responses.std() < 1.0
    for side in (responses, -responses):
        assert 0.15 < np.mean(side > 0.7) < 0.25


@pytest.mark.parametrize(
    "make",
    [
        lambda seed: OpponentColours(seed=seed),
        lambda seed: PatchBank(16, seed=seed, images=50),
        lambda seed: Whitening(
            [MirrorAverage([OpponentColours(seed=seed), PatchBank(8, images=50)])],
            seed=seed,
            images=50,
        ),
    ],
    ids=["colours", "patches", "whitening"],
)
def test_constants_are_made_from_the_seed_and_saved(make, tmp_path, monkeypatch):
    images = random_images(2, 12, 12, 5)

    def network(seed):
        inputs = keras.Input((12, 12, 5))
        return keras.Model(inputs, make(seed)(inputs))

    one = network(1)
    wanted = one(images).numpy()
    assert not np.allclose(wanted, network(2)(images), rtol=1e-2)
    clear_constants()
    np.testing.assert_allclose(wanted, network(1)(images), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(
        wanted, keras.models.clone_model(one)(images), rtol=1e-4, atol=1e-5
    )
    assert one.variables and not one.trainable_variables
    one.save(tmp_path / "x.keras")
    clear_constants()
    monkeypatch.setattr("dpmix_tf.models.measured.dead_leaves", None)  # not again
    again = keras.models.load_model(tmp_path / "x.keras")
    np.testing.assert_array_equal(wanted, again(images))


def test_constants_stay_in_float32():
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        layer = Whitening([MirrorAverage([PatchBank(4, images=20)])], images=20)
    finally:
        keras.config.set_dtype_policy("float32")
    assert layer(tf.zeros((1, 8, 8, 1))).dtype == tf.float32
