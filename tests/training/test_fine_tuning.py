"""A head on an encoder of one's own, from its file to an export."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from configs import cifar10_encoder, own_encoder, photos
from dpmix_tf.cli import generate_pool
from dpmix_tf.data import load_dataset
from dpmix_tf.errors import DPMixError
from dpmix_tf.serving.export import export_saved_model
from dpmix_tf.training import Trainer
from dpmix_tf.training.restore import restore_network
from dpmix_tf.training.workdir import differences


def encoder(path, seed):
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((16, 16, 3))
    x = keras.layers.Conv2D(8, 3, strides=2)(inputs)
    x = keras.layers.ReLU()(keras.layers.BatchNormalization()(x))
    keras.Model(inputs, keras.layers.Conv2D(16, 3)(x)).save(path)


@pytest.fixture
def config(tmp_path):
    encoder(tmp_path / "encoder.keras", 0)
    config = own_encoder.get_config()
    config.network.encoder = str(tmp_path / "encoder.keras")
    config.views.base, config.views.mixed = 2, 2
    config.privacy.update(updates=4, expected_batch_size=64, accountant="rdp")
    return config


@pytest.mark.slow
def test_a_frozen_encoder_from_its_file_to_an_export(config, tmp_path):
    workdir = tmp_path / "run"
    final = Trainer(config, workdir).run()
    assert final["updates"] == 4
    saved = json.loads((workdir / "config.json").read_text())
    assert len(saved["network"]["sha256"]) == 64
    spent = json.loads((workdir / "privacy.json").read_text())
    assert "pretrained weights that training started from" in spent["statement"]
    network, _ = restore_network(workdir)
    assert len(network.trainable_variables) == 2

    images, _ = load_dataset("digits").test.read(range(5))
    where = export_saved_model(workdir, tmp_path / "models")
    loaded = tf.saved_model.load(str(where))
    answer = loaded.signatures["serving_default"](tf.constant(images))
    logits = network(images.astype(np.float32) / 255)
    np.testing.assert_allclose(
        answer["probabilities"], keras.ops.softmax(logits), atol=1e-5
    )
    card = json.loads((where / "assets.extra" / "privacy_card.json").read_text())
    assert card["public_weights_sha256"] == saved["network"]["sha256"]
    assert "pretrained weights" in card["statement"]
    for path in where.rglob("*"):  # where the user's file lies is not told
        assert path.is_dir() or str(tmp_path).encode() not in path.read_bytes(), path


@pytest.mark.slow
def test_ones_own_photographs_need_a_folder_and_nothing_else(tmp_path):
    """Three classes that differ in their colour alone, from files to an export."""
    random = np.random.default_rng(0)
    for label, name in enumerate(("blue", "green", "red")):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for index in range(80):
            pixels = random.integers(0, 150, (40, 60, 3), dtype=np.uint8)
            pixels[..., 2 - label] += 100
            Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{index}.png")
    config = photos.get_config()
    config.data.data_dir = str(tmp_path / "photos")
    config.data.image_size = config.network.image_size = 64  # for time
    config.privacy.updates, config.privacy.accountant = 20, "rdp"
    final = Trainer(config, tmp_path / "run").run()
    assert final["test_accuracy_ema"] > 0.8
    where = export_saved_model(tmp_path / "run", tmp_path / "models")
    card = json.loads((where / "assets.extra" / "privacy_card.json").read_text())
    assert card["model"]["class_names"] == ["blue", "green", "red"]


@pytest.mark.slow
def test_a_head_starts_from_photographs_that_are_left_out(tmp_path):
    """As for CIFAR-10, with digits in its place: the pool is another part of them."""
    config = cifar10_encoder.get_config("432")
    config.data.name = "digits"
    config.network.image_size, config.network.components = 32, 20
    config.views.base, config.views.mixed = 2, 2
    config.pool.path = str(tmp_path / "pool")
    config.privacy.update(updates=2, accountant="rdp")
    generate_pool._import_left_out(tmp_path / "pool", config.data.to_dict(), 10)
    Trainer(config, tmp_path / "run").run()
    statement = json.loads((tmp_path / "run" / "privacy.json").read_text())["statement"]
    assert "starts from weights trained on a pool of" in statement


@pytest.mark.slow
def test_another_file_under_the_same_name_is_noticed(config, tmp_path):
    workdir = tmp_path / "run"
    Trainer(config, workdir).run()
    encoder(tmp_path / "encoder.keras", 1)
    with pytest.raises(DPMixError, match="network.sha256"):
        Trainer(config, workdir)
    with pytest.raises(DPMixError, match="another file"):
        restore_network(workdir)
    (tmp_path / "encoder.keras").unlink()
    with pytest.raises(DPMixError, match="no such file"):
        Trainer(config, tmp_path / "other")
    assert not (tmp_path / "other").exists()  # before anything is written


@pytest.mark.slow
def test_a_run_finds_its_encoder_where_it_was_moved_to(config, tmp_path):
    workdir = tmp_path / "run"
    Trainer(config, workdir).run()
    before, _ = restore_network(workdir)
    moved = (tmp_path / "encoder.keras").rename(tmp_path / "moved.keras")
    with pytest.raises(DPMixError, match="encoder.keras, which is gone.*new path"):
        restore_network(workdir)
    config.network.encoder = str(moved)
    assert Trainer(config, workdir).run()["updates"] == 4
    after, _ = restore_network(workdir)
    for old, new in zip(before.variables, after.variables, strict=True):
        np.testing.assert_array_equal(old, new)


_PATH = {"name": "pretrained", "encoder": "/a.keras", "sha256": "1"}
_KEY = {"name": "pretrained", "encoder": "clip_vit_b16", "weights": "/a", "sha256": "1"}


@pytest.mark.parametrize(
    ("network", "changes", "same"),
    [
        (_PATH, {"encoder": "/b.keras"}, True),
        (_PATH, {"encoder": "/b.keras", "sha256": "2"}, False),
        (_PATH, {"encoder": "/b.keras", "blocks": 2}, False),
        (_PATH | {"sha256": None}, {"encoder": "/b.keras"}, False),
        (_PATH, {"encoder": "clip_vit_b16"}, False),
        (_KEY, {"weights": "/b"}, True),
        (_KEY, {"weights": "/b", "sha256": "2"}, False),
        (_KEY, {"encoder": "clip_vit_b32"}, False),
        ({"name": "convnet", "sha256": "1"}, {"encoder": "/b.keras"}, False),
    ],
)
def test_where_public_weights_lie_is_no_difference_if_they_are_the_same(
    network, changes, same
):
    there, here = {"network": network}, {"network": network | changes}
    assert (differences(there, here) == []) == same
