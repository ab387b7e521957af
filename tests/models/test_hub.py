"""Encoders of KerasHub: its real classes, small and with random weights."""

import importlib.util
import json
import shutil
import subprocess
import sys
from types import SimpleNamespace

import keras
import numpy as np
import pytest
import tensorflow as tf

from dpmix_tf.errors import DPMixError
from dpmix_tf.models import hub, public_file, split_frozen_front, validate_network
from dpmix_tf.models.pretrained import pretrained, weights_digest
from dpmix_tf.privacy import ledger
from dpmix_tf.serving import export
from dpmix_tf.training import Trainer, default_config, restore_network
from dpmix_tf.training.config import pretrained_network

needs_keras_hub = pytest.mark.skipif(
    importlib.util.find_spec("keras_hub") is None,
    reason="needs keras_hub: pip install dpmix_tf[keras_hub]",
)
MEAN, STD = np.array([0.48, 0.46, 0.41]), np.array([0.27, 0.26, 0.28])
SCALE, OFFSET = (1 / 255 / STD).tolist(), (-MEAN / STD).tolist()
SIZES = {"num_layers": 2, "hidden_dim": 16, "num_heads": 2, "intermediate_dim": 32}
VISION = SIZES | {"patch_size": 7, "image_shape": (28, 28, 3)}
TEXT = SIZES | {"vocabulary_size": 20, "embedding_dim": 16}


def dinov2(keras_hub):
    return keras_hub.models.DINOV2Backbone(
        **VISION,
        num_register_tokens=2,
        position_embedding_shape=(28, 28, 3),
    )


def clip(keras_hub):
    models = keras_hub.models
    return models.CLIPBackbone(
        models.CLIPVisionEncoder(**VISION), models.CLIPTextEncoder(**TEXT), 12
    )


def siglip(keras_hub):
    models = keras_hub.models
    return models.SigLIPBackbone(
        models.SigLIPVisionEncoder(**VISION),
        models.SigLIPTextEncoder(**TEXT, projection_dim=16),
    )


def densenet(keras_hub):
    return keras_hub.models.DenseNetBackbone([1, 1], image_shape=(28, 28, 3))


# The backbone; its converter; images of [n,28,28,3], as the converter leaves them, ->
# what its authors take as the image's features.
REAL = {
    "dinov2": (
        dinov2,
        "DINOV2ImageConverter",
        lambda backbone, x: backbone({"images": x})[:, 0],
    ),
    "clip": (
        clip,
        "CLIPImageConverter",
        lambda backbone, x: backbone.get_vision_embeddings(x),
    ),
    "siglip": (
        siglip,
        "SigLIPImageConverter",
        lambda backbone, x: backbone.vision_encoder({"images": x}),
    ),
    "densenet": (
        densenet,
        "DenseNetImageConverter",
        lambda backbone, x: keras.ops.mean(backbone(x), (1, 2)),
    ),
}


def saved(name, folder):
    """Saves a preset; its backbone and the converter of its images."""
    import keras_hub

    make, converter, _ = REAL[name]
    keras.utils.set_random_seed(0)
    backbone = make(keras_hub)
    for variable in backbone.weights:  # biases begin at zero, scales at one
        variable.assign_add(0.1 * np.random.default_rng(0).random(variable.shape))
    converter = getattr(keras_hub.layers, converter)(
        image_size=(28, 28), scale=SCALE, offset=OFFSET
    )
    backbone.save_to_preset(str(folder))
    converter.save_to_preset(str(folder))
    return backbone, converter


@pytest.fixture
def preset(tmp_path):
    saved("dinov2", tmp_path / "preset")
    return tmp_path / "preset"


def build(encoder, **settings):
    return pretrained(
        **{"input_shape": (20, 20, 3), "num_classes": 5} | settings,
        encoder=encoder,
    )


def some_images(size=28):
    return np.random.default_rng(0).random((3, size, size, 3), np.float32)


@needs_keras_hub
@pytest.mark.slow
@pytest.mark.parametrize("name", REAL)
def test_features_are_those_of_the_real_class_on_its_own_preprocessing(name, tmp_path):
    backbone, converter = saved(name, tmp_path / "preset")
    network = build(f"keras_hub:{tmp_path}/preset", input_shape=(28, 28, 3))
    head = network.get_layer("logits")
    assert [id(v) for v in network.trainable_variables] == [id(v) for v in head.weights]
    validate_network(network)
    features = np.asarray(REAL[name][2](backbone, converter(255 * some_images())))
    assert features.std(axis=0).max() > 1e-4  # it tells images apart
    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    features = features * features.shape[1] ** 0.5 / lengths
    front = keras.Model(network.inputs, head.input)
    np.testing.assert_allclose(
        front(some_images(), training=False), features, rtol=1e-3, atol=1e-4
    )
    encoded, _ = split_frozen_front(network)
    assert encoded.output.shape == (None, features.shape[1])


@needs_keras_hub
def test_positions_are_interpolated_where_the_backbone_can(preset, tmp_path):
    larger = hub.hub_encoder(preset, 42)
    assert larger.input.shape == (None, 42, 42, 3)
    own = hub.hub_encoder(preset, None)
    assert own.input.shape == (None, 28, 28, 3)
    assert not np.allclose(
        larger(some_images(42)), own(some_images(42)[:, 7:35, 7:35]), atol=1e-3
    )
    saved("clip", tmp_path / "clip")
    with pytest.raises(DPMixError, match="network.image_size is 42"):
        build(f"keras_hub:{tmp_path}/clip", image_size=42)


@needs_keras_hub
@pytest.mark.slow
def test_a_head_is_trained_on_encoded_views_restored_and_exported(preset, tmp_path):
    config = default_config()
    config.network = pretrained_network(f"keras_hub:{preset}")
    config.network.update(normalise="leaves", components=8)
    config.views.update(base=2, mixed=1, visits=1)
    config.privacy.update(epsilon=8.0, delta=1e-4, updates=2, accountant="rdp")
    trainer = Trainer(config, tmp_path / "run")
    before = [np.asarray(v) for v in trainer.model.network.variables]
    trainer.run()
    moved = [
        variable.path
        for variable, old in zip(trainer.model.network.variables, before, strict=True)
        if not np.array_equal(variable, old)
    ]
    assert moved == ["logits/kernel", "logits/bias"]
    assert any((tmp_path / "run" / "cache").iterdir())
    (entry,) = trainer.model.ledger.entries
    assert ledger.PUBLIC_WEIGHTS in entry.conditions
    pinned = json.loads((tmp_path / "run" / "config.json").read_text())
    assert pinned["network"]["sha256"] == weights_digest(f"keras_hub:{preset}")

    images = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 1), np.uint8)
    network, _ = restore_network(tmp_path / "run")
    logits = network(images / np.float32(255))
    expected = keras.ops.softmax(logits)
    where = export.export_saved_model(tmp_path / "run", tmp_path / "models")
    served = tf.saved_model.load(str(where)).signatures["serving_default"]
    np.testing.assert_allclose(
        served(images=tf.constant(images))["probabilities"], expected, atol=1e-5
    )
    export.export_file(tmp_path / "run", tmp_path / "x.tflite")
    answers = export._load_litert(tmp_path / "x.tflite", "single_label")(images)
    np.testing.assert_allclose(answers, expected, atol=1e-4)

    export.export_file(tmp_path / "run", tmp_path / "x.keras")
    code = (
        "import sys, keras, numpy as np; import dpmix_tf.models\n"
        "network = keras.saving.load_model(sys.argv[1], compile=False)\n"
        "np.save(sys.argv[3], network(np.load(sys.argv[2])))"
    )
    np.save(tmp_path / "in.npy", images / np.float32(255))
    arguments = [str(tmp_path / name) for name in ("x.keras", "in.npy", "out.npy")]
    subprocess.run([sys.executable, "-c", code, *arguments], check=True)
    np.testing.assert_allclose(np.load(tmp_path / "out.npy"), logits, atol=1e-5)


@needs_keras_hub
def test_a_preset_that_changed_moved_or_went_is_noticed(preset, tmp_path):
    encoder = f"keras_hub:{preset}"
    found = weights_digest(encoder)
    build(encoder, sha256=found)
    moved = shutil.copytree(preset, tmp_path / "moved")
    assert weights_digest(f"keras_hub:{moved}") == found
    (moved / "model.weights.h5").write_bytes(b"another")
    with pytest.raises(DPMixError, match="another file"):
        build(f"keras_hub:{moved}", sha256=found)
    with pytest.raises(DPMixError, match="moved does not hold a KerasHub preset"):
        build(f"keras_hub:{moved}")
    with pytest.raises(DPMixError, match="no such file: .*nowhere"):
        build(f"keras_hub:{tmp_path}/nowhere")


@needs_keras_hub
@pytest.mark.parametrize("missing", ["config.json", "image_converter.json"])
def test_how_images_are_normalised_is_never_guessed(preset, missing):
    (preset / missing).unlink()
    with pytest.raises(DPMixError, match=rf"{missing}.*Expected a folder with config"):
        build(f"keras_hub:{preset}")


@needs_keras_hub
def test_a_preset_of_texts_is_refused(tmp_path):
    import keras_hub

    keras_hub.models.BertBackbone(20, 1, 2, 16, 32).save_to_preset(str(tmp_path / "a"))
    with pytest.raises(DPMixError, match="does not hold .* takes images alone"):
        build(f"keras_hub:{tmp_path}/a")


@pytest.fixture
def presets(monkeypatch):
    """Stands for keras_hub where only its list of presets is asked for."""
    known = {"dinov2_base": {"kaggle_handle": "kaggle://keras/dinov2/keras/a/1"}}
    converter = SimpleNamespace(presets=known)
    fake = SimpleNamespace(layers=SimpleNamespace(ImageConverter=converter))
    monkeypatch.setitem(sys.modules, "keras_hub", fake)


def test_a_name_is_downloaded_once_and_its_folder_pinned(
    presets, monkeypatch, tmp_path
):
    asked = []

    def model_download(handle, file):
        asked.append((handle, file))
        return str(tmp_path)

    monkeypatch.setattr("kagglehub.model_download", model_download)
    (tmp_path / "config.json").write_text("{}")
    monkeypatch.setattr(hub, "_PYTHON", (3, 10))
    assert public_file("keras_hub:dinov2_base") == tmp_path
    assert asked == [("keras/dinov2/keras/a/1", None)]
    first = weights_digest("keras_hub:dinov2_base")
    (tmp_path / "config.json").write_text("{} ")
    assert weights_digest("keras_hub:dinov2_base") != first


def test_without_a_network_the_way_out_is_named(presets, monkeypatch, tmp_path):
    def no_network(*arguments):
        raise OSError("no route")

    monkeypatch.setattr("kagglehub.model_download", no_network)
    monkeypatch.setattr(hub, "_PYTHON", (3, 10))
    config = default_config()
    config.network = pretrained_network("keras_hub:dinov2_base")
    with pytest.raises(DPMixError, match="no route.*network.encoder=keras_hub:PATH"):
        Trainer(config, tmp_path / "run")
    assert not (tmp_path / "run" / "privacy.json").exists()  # before any is spent


@pytest.mark.parametrize(
    ("encoder", "words"),
    [
        ("keras_hub:dinov2_bass", "neither a folder nor one of .*presets"),
        ("keras_hub:", "must be a file or folder path"),
        ("keras_hub:kaggle://keras/dinov2", "is a remote address"),
        ("keras_hub:./gone", "no such file: gone"),
    ],
)
def test_what_is_no_preset_is_refused(encoder, words, presets, monkeypatch):
    monkeypatch.setattr(hub, "_PYTHON", (3, 10))
    with pytest.raises(DPMixError, match=words):
        build(encoder)


def test_where_keras_hub_is_missing_its_extra_is_named(monkeypatch, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    monkeypatch.setattr(hub, "_PYTHON", (3, 10))
    monkeypatch.setitem(sys.modules, "keras_hub", None)
    for encoder in ("keras_hub:dinov2_base", f"keras_hub:{tmp_path}"):
        with pytest.raises(DPMixError, match=r"pip install dpmix_tf\[keras_hub\]"):
            build(encoder)
    monkeypatch.setattr(hub, "_PYTHON", (3, 99))
    with pytest.raises(DPMixError, match="need Python 3.99; this is 3"):
        build("keras_hub:dinov2_base")
