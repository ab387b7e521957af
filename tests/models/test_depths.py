"""Features of several depths of a public encoder under a private head."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from dpmix_tf.errors import DPMixError
from dpmix_tf.models import encoders, split_frozen_front, validate_network
from dpmix_tf.models.components import PrincipalComponents
from dpmix_tf.models.depths import at_depths
from dpmix_tf.models.measured import leaf_images
from dpmix_tf.models.pretrained import pretrained
from dpmix_tf.serving import export
from dpmix_tf.training import Trainer, default_config, restore_network
from dpmix_tf.training.config import pretrained_network
from tests.models.test_pretrained import SMALL

WIDTHS = 4, 6, 5  # of the toy's blocks
_RANDOM = np.random.default_rng(0)
MATRICES = [
    _RANDOM.normal(size=shape) * scale
    for shape, scale in (((3, 4), 30.0), ((4, 6), 0.1), ((6, 5), 0.1))
]


def toy(size, weights):
    """Three blocks, each a matrix that every pixel's channels are multiplied with."""
    inputs = keras.Input((size, size, 3))
    x, blocks = inputs, []
    for matrix in MATRICES:
        layer = layers.Conv2D(matrix.shape[1], 1, use_bias=False)
        x = layer(x)
        layer.set_weights([matrix[np.newaxis, np.newaxis]])
        blocks.append([layer])
    return keras.Model(inputs, layers.GlobalAveragePooling2D()(x)), blocks


@pytest.fixture(autouse=True)
def toys(monkeypatch):
    for name, encoder in SMALL.items():
        monkeypatch.setitem(encoders.ENCODERS, name, encoder)
    monkeypatch.setitem(encoders.ENCODERS, "toy", encoders.Encoder(8, toy))


def build(encoder="toy", **settings):
    return pretrained(
        input_shape=(8, 8, 3),
        num_classes=10,
        encoder=encoder,
        **{"weights": None, "normalise": "leaves", "components": 7} | settings,
    )


def features_of(network):
    return keras.Model(network.inputs, network.get_layer("logits").input)


def test_each_depth_counts_the_same_and_the_components_are_of_all():
    """In numpy, from the pixels on."""
    leaves = leaf_images((8, 8, 3), 0).astype(np.float64) / 255

    def blocks_of(images):
        mean = images.mean((1, 2))  # all that is linear may come first
        return mean @ MATRICES[0] @ MATRICES[1] @ MATRICES[2], mean @ MATRICES[0]

    public = blocks_of(leaves)
    middle = [block.mean(0) for block in public]
    norms = [
        np.sqrt(np.mean(np.sum((block - mean) ** 2, axis=1)))
        for block, mean in zip(public, middle, strict=True)
    ]
    assert norms[1] > 5 * norms[0]  # one would drown the other

    def whole(images):
        return np.concatenate(
            [
                (block - mean) / norm
                for block, mean, norm in zip(
                    blocks_of(images), middle, norms, strict=True
                )
            ],
            axis=1,
        )

    # Five features of the last block are of three channels: three directions in all.
    network = build(depths=(0, 2), components=3)
    _, _, axes = np.linalg.svd(whole(leaves), full_matrices=False)
    images = np.random.default_rng(1).random((6, 8, 8, 3))
    expected = whole(images) @ axes[:3].T
    expected *= 3**0.5 / np.linalg.norm(expected, axis=1, keepdims=True)
    found = features_of(network)(images.astype(np.float32)).numpy()
    np.testing.assert_allclose(np.abs(found), np.abs(expected), atol=2e-3)


def test_groups_are_brought_to_one_norm_and_what_never_varies_to_nothing():
    features = np.random.default_rng(0).normal(size=(40, 6)) * [9, 9, 1, 1, 0, 0] + 5
    layer = PrincipalComponents(6, groups=(2, 2, 2))
    layer.build((None, 6))
    layer.fit(features)
    kernel = layer.basis.numpy()
    energy = [
        np.sum(((features - features.mean(0))[:, part] @ kernel[part]) ** 2)
        for part in (slice(0, 2), slice(2, 4), slice(4, 6))
    ]
    assert energy[0] == pytest.approx(energy[1], rel=1e-4) and energy[2] == 0
    assert np.isfinite(kernel).all() and not kernel[4:].any()
    again = PrincipalComponents.from_config(layer.get_config())
    assert again.groups == (2, 2, 2) and again.components == 6


def test_the_depths_of_the_real_encoder_are_outputs_of_its_blocks():
    images = np.random.default_rng(0).random((2, 64, 64, 3), np.float32)
    build_lite = encoders.ENCODERS["efficientnet_lite0"].build
    tower, blocks = build_lite(64, None)
    several, widths = at_depths(tower, blocks, (0, 1, 5, 16))
    assert widths == (1280, 192, 112, 32)  # what the published blocks take in
    found = np.split(several(images).numpy(), np.cumsum(widths)[:-1], axis=1)
    np.testing.assert_allclose(found[0], tower(images), atol=1e-6)
    # What is taken one block before the end is what the last block makes the end of.
    x = keras.Model(tower.input, blocks[-1][0].input)(images)
    np.testing.assert_allclose(found[1], np.mean(x, (1, 2)), atol=1e-6)
    expand, depthwise, project, head = blocks[-1]
    for layer in (expand, depthwise):
        x = np.clip(layer(x), 0, 6)
    x = np.clip(head(project(x)), 0, 6)
    np.testing.assert_allclose(found[0], np.mean(x, (1, 2)), atol=1e-6)
    stem = np.clip(tower.get_layer("conv_stem")(images * 255 / 128 - 127 / 128), 0, 6)
    np.testing.assert_allclose(found[3], np.mean(stem, (1, 2)), atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("encoder", SMALL)
def test_every_kind_of_encoder_has_depths_in_front_of_the_head(encoder):
    network = build(encoder, depths=(0, 1, 2), components=20)
    validate_network(network)
    assert len(network.trainable_variables) == 2
    front, _ = split_frozen_front(network)
    assert front.output.shape == (None, 20)
    last = build(encoder, components=20)
    images = np.random.default_rng(0).random((2, 8, 8, 3), np.float32)
    assert not np.allclose(
        features_of(network)(images), features_of(last)(images), atol=1e-3
    )


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"depths": (0, 4)}, r"from 0 to 3; received: \(0, 4\)"),
        ({"depths": (0, -1)}, "from 0 to 3"),
        ({"depths": (1, 1)}, "must be different numbers"),
        ({"depths": ()}, "must be different numbers"),
        ({"depths": (0, 1), "normalise": "none"}, "need network.normalise"),
        ({"depths": (0, 1), "trainable": "all"}, "trainable must be 'head'"),
    ],
)
def test_depths_that_are_not_there_are_refused(settings, words):
    with pytest.raises(DPMixError, match=words):
        build(**settings)


def test_a_file_of_ones_own_has_no_depths(tmp_path):
    toy(8, None)[0].save(tmp_path / "own.keras")
    with pytest.raises(DPMixError, match="encoders that are built by name"):
        build(str(tmp_path / "own.keras"), depths=(0, 1))


@pytest.mark.slow
def test_a_run_encodes_its_depths_once_and_is_restored_and_exported(tmp_path):
    config = default_config()
    config.network = pretrained_network("toy")
    config.network.update(
        weights=None, normalise="leaves", components=3, depths=(0, 1, 3)
    )
    config.views.update(base=2, mixed=1, visits=1)
    config.privacy.update(epsilon=8.0, delta=1e-4, updates=2, accountant="rdp")
    trainer = Trainer(config, tmp_path / "run")
    trainer.run()
    assert any((tmp_path / "run" / "cache").iterdir())
    images = np.random.default_rng(1).integers(0, 256, (5, 8, 8, 1), np.uint8)
    network, _ = restore_network(tmp_path / "run", weights="raw")
    logits = network(images / np.float32(255))
    np.testing.assert_allclose(
        logits, trainer.model.network(images / np.float32(255)), atol=1e-5
    )
    assert np.std(logits) > 1e-6

    network, _ = restore_network(tmp_path / "run")
    logits = network(images / np.float32(255))
    expected = keras.ops.softmax(logits)
    where = export.export_saved_model(tmp_path / "run", tmp_path / "models")
    served = tf.saved_model.load(str(where)).signatures["serving_default"]
    answers = served(images=tf.constant(images))["probabilities"]
    np.testing.assert_allclose(answers, expected, atol=1e-5)
    export.export_file(tmp_path / "run", tmp_path / "x.keras")
    loaded = keras.saving.load_model(tmp_path / "x.keras", compile=False)
    np.testing.assert_allclose(loaded(images / np.float32(255)), logits, atol=1e-5)
    export.export_file(tmp_path / "run", tmp_path / "x.tflite")
    answers = export._load_litert(tmp_path / "x.tflite", "single_label")(images)
    np.testing.assert_allclose(answers, expected, atol=1e-4)
