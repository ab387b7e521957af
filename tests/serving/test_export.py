"""What comes out of a run: SavedModel, privacy card, files; and what must not."""

import functools
import io
import json
import os
import random
import shutil
import signal
import struct
import subprocess
import sys
import time

import hypothesis
import jsonschema
import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import strategies as st
from PIL import ExifTags, Image, ImageOps

from dpmix_tf.data import load_dataset
from dpmix_tf.errors import DPMixError
from dpmix_tf.images import MOST_PIXELS, exif_orientation, fit_image, to_png
from dpmix_tf.serving import export, orientation, privacy_card, signatures, warmup
from dpmix_tf.training import Trainer, checkpoints, restore_network
from tests.conftest import ROOT
from tests.serving.c_api import CModel
from tests.serving.conftest import small_config


def expected(workdir, images, weights="ema"):
    network, _ = restore_network(workdir, weights=weights)
    return signatures.probabilities_of(network, images).numpy()


def test_every_signature_answers_as_the_trained_model_does(trained, exported, images):
    served = tf.saved_model.load(str(exported)).signatures
    files = tf.constant([to_png(image) for image in images])
    for answer in (
        served["serving_default"](images=tf.constant(images)),
        served["serving_float"](images=tf.constant(images / np.float32(255))),
        served["serving_bytes"](image_bytes=files),
    ):
        probabilities = answer["probabilities"].numpy()
        np.testing.assert_allclose(probabilities, expected(trained, images), atol=1e-6)
        order = np.argsort(-probabilities, axis=1)
        np.testing.assert_array_equal(answer["classes"], order.astype("S"))
        np.testing.assert_array_equal(
            answer["scores"], np.take_along_axis(probabilities, order, 1)
        )
    names = (exported / "assets" / "class_names.txt").read_text()
    assert names.split() == [str(digit) for digit in range(10)]
    none = served["serving_bytes"](image_bytes=tf.constant([], tf.string))
    assert none["probabilities"].shape == (0, 10)


def test_floats_out_of_range_are_refused(exported, images):
    served = tf.saved_model.load(str(exported)).signatures["serving_float"]
    for bad in (images.astype(np.float32), images / np.float32(-255), images * np.nan):
        with pytest.raises(tf.errors.InvalidArgumentError, match="in .0, 1."):
            served(images=tf.constant(bad, tf.float32))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    "mode, kind, size",
    [
        ("RGB", "PNG", (32, 32)),
        ("L", "PNG", (32, 32)),
        ("LA", "PNG", (32, 32)),
        ("1", "PNG", (32, 32)),
        ("I;16", "PNG", (32, 32)),
        ("RGBA", "PNG", (50, 70)),
        ("RGB", "PNG", (20, 20)),
        ("RGB", "JPEG", (320, 200)),
        ("L", "JPEG", (64, 64)),
        ("CMYK", "JPEG", (60, 60)),
        ("RGB;16", "PNG", (32, 32)),
        ("LA;16", "PNG", (32, 32)),
    ],
)
def test_files_are_decoded_as_in_training(mode, kind, size, channels):
    x, y = np.meshgrid(np.arange(size[0]), np.arange(size[1]))
    waves = [np.sin(x / (5 + c) + y / 7 + c) for c in range(3)]
    colours = ((np.stack(waves, -1) + 1) * 127.5).astype(np.uint8)
    buffer = io.BytesIO()
    deep = (colours * np.uint16(257)) ^ np.uint16(0x3C)
    if mode == "I;16":
        Image.fromarray(deep[..., 0]).save(buffer, kind)
    elif mode.endswith(";16"):
        buffer.write(tf.io.encode_png(deep[..., : len(mode) - 3]).numpy())
    else:
        Image.fromarray(colours).convert(mode).save(buffer, kind)
    got = signatures.decode(tf.constant([buffer.getvalue()]), (32, 32, channels))[0]
    with Image.open(buffer) as again:
        wanted = fit_image(again, (32, 32, channels))
    apart = np.abs(got.numpy().astype(int) - wanted.astype(int))
    assert apart.max() <= (0 if size == (32, 32) else 2)
    assert wanted.std() > 10


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("endian", "<>")
def test_files_are_turned_as_in_training(kind, endian):
    """At native size, exactly; of all orientations, and of numbers that are none."""
    x, y = np.meshgrid(np.arange(30), np.arange(20))
    waves = [np.sin(x / (5 + c) + y / 7 + c) for c in range(3)]
    image = Image.fromarray(((np.stack(waves, -1) + 1) * 127.5).astype(np.uint8))
    decode = {
        size: tf.function(
            functools.partial(signatures.decode, image_shape=(*size[::-1], 3))
        )
        for size in ((30, 20), (20, 30))
    }
    for number in range(11):
        exif = Image.Exif()
        exif.endian = endian
        exif[ExifTags.Base.Make] = "maker"
        exif[ExifTags.Base.Orientation] = number
        buffer = io.BytesIO()
        image.save(buffer, kind, exif=exif)
        with Image.open(buffer) as again:
            wanted = ImageOps.exif_transpose(again)
        assert wanted.size == ((20, 30) if number in (5, 6, 7, 8) else (30, 20))
        got = decode[wanted.size](tf.constant([buffer.getvalue()]))[0].numpy()
        np.testing.assert_array_equal(got, wanted)
        with Image.open(buffer) as again:
            np.testing.assert_array_equal(got, fit_image(again, got.shape))


_orientation_of = tf.function(orientation.of_file)


@hypothesis.settings(max_examples=100, deadline=None)
@hypothesis.given(st.binary(max_size=80), st.sampled_from([b"", b"II*\0", b"MM\0*"]))
def test_damaged_exif_data_never_fails_a_request(data, start):
    exif = start + data
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "PNG", exif=exif)
    file = tf.constant(buffer.getvalue())
    assert 1 <= _orientation_of(file, tf.constant(True)) <= 8
    cut = tf.constant(b"\xff\xd8\xff\xe1" + data)
    assert 1 <= _orientation_of(cut, tf.constant(False)) <= 8


def test_the_graph_and_python_find_the_same_orientation():
    """In directories of several entries, of either byte order."""
    random = np.random.default_rng(0)
    for _ in range(50):
        order = random.choice(["<", ">"])
        tags = random.permutation([0x010F, 0x0110, 0x0112, 0x0112, 0x0131])[:3]
        entries = b"".join(
            struct.pack(f"{order}HHIHH", tag, 3, 1, *random.integers(0, 10, 2))
            for tag in tags
        )
        gap = bytes(random.integers(0, 256, random.integers(0, 9), np.uint8))
        head = b"II*\0" if order == "<" else b"MM\0*"
        exif = head + struct.pack(f"{order}I", 8 + len(gap)) + gap
        exif += struct.pack(f"{order}H", len(tags)) + entries + b"\0" * 4
        png = io.BytesIO()
        Image.new("RGB", (8, 8)).save(png, "PNG", exif=exif)
        found = _orientation_of(tf.constant(png.getvalue()), tf.constant(True))
        assert found == exif_orientation(exif)


def test_twelve_bits_in_sixteen_fail_their_request(exported):
    deep = np.linspace(0, 4095, 64).astype(np.uint16).reshape(8, 8, 1)
    served = tf.saved_model.load(str(exported)).signatures["serving_bytes"]
    served(image_bytes=[tf.io.encode_png(deep * 16)])
    with pytest.raises(tf.errors.InvalidArgumentError, match="Stretch it to 16 bits"):
        served(image_bytes=[tf.io.encode_png(deep)])


def bomb():
    data = bytearray(to_png(np.zeros((8, 8, 1), np.uint8)))
    side = int(MOST_PIXELS**0.5) + 1
    data[16:24] = side.to_bytes(4, "big") * 2
    return bytes(data)


@pytest.mark.parametrize(
    "data, words",
    [
        (b"", "neither a JPEG nor a PNG"),
        (b"GIF89a and more", "neither a JPEG nor a PNG"),
        (to_png(np.zeros((8, 8, 1), np.uint8))[:40], "Invalid PNG"),
        (b"\xff\xd8\xff\xe0" + b"a" * 60, "Invalid JPEG"),
        (bomb(), "80,000,000 pixels"),
    ],
    ids=["empty", "gif", "cut", "jpeg", "bomb"],
)
def test_a_broken_image_fails_its_request(exported, images, data, words):
    served = tf.saved_model.load(str(exported)).signatures["serving_bytes"]
    with pytest.raises(tf.errors.InvalidArgumentError, match=words):
        served(image_bytes=tf.constant([to_png(images[0]), data]))


def test_tensorflows_c_api_serves_it(exported, images):
    """The loader TensorFlow Serving itself uses, warm-up requests included."""
    python = tf.saved_model.load(str(exported)).signatures
    c_model = CModel(exported)
    files = np.array([to_png(image) for image in images], object)
    requests = [
        ("serving_default", {"images": images}),
        ("serving_bytes", {"image_bytes": files}),
    ]
    warm = list(warmup.read_warmup(exported / "assets.extra" / warmup.FILE))
    assert {name for name, _ in warm} == {
        "serving_default",
        "serving_float",
        "serving_bytes",
    }
    for name, inputs in requests + warm:
        wanted = python[name](**{k: tf.constant(v) for k, v in inputs.items()})
        got = c_model.run(name, **inputs)
        assert sorted(got) == ["classes", "probabilities", "scores"]
        np.testing.assert_array_equal(got["classes"], wanted["classes"])
        for output in ("probabilities", "scores"):
            np.testing.assert_allclose(got[output], wanted[output], atol=1e-6)
    with pytest.raises(RuntimeError, match="neither a JPEG nor a PNG"):
        c_model.run("serving_bytes", image_bytes=np.array([b"nothing"], object))


@pytest.mark.slow
def test_saved_model_cli_shows_and_runs_it(exported, images, tmp_path):
    tool = [sys.executable, "-m", "tensorflow.python.tools.saved_model_cli"]
    base = ["--dir", str(exported), "--tag_set", "serve"]
    show = subprocess.run(
        [*tool, "show", *base, "--signature_def", "serving_default"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert "DT_UINT8" in show and "shape: (-1, 8, 8, 1)" in show
    assert all(name in show for name in ("probabilities", "classes", "scores"))
    np.save(tmp_path / "images.npy", images)
    run = ["run", *base, "--signature_def", "serving_default"]
    run += ["--inputs", f"images={tmp_path}/images.npy", "--outdir", str(tmp_path)]
    subprocess.run([*tool, *run], check=True, capture_output=True)
    served = tf.saved_model.load(str(exported)).signatures["serving_default"]
    np.testing.assert_allclose(
        np.load(tmp_path / "probabilities.npy"),
        served(images=tf.constant(images))["probabilities"],
        atol=1e-6,
    )


def test_the_card_says_what_was_spent(trained, exported):
    card = privacy_card.read_card(exported)
    assert card == privacy_card.read_card(exported.parent)
    assert card == privacy_card.read_card(
        exported / "assets.extra" / "privacy_card.json"
    )
    spent = json.loads((trained / "privacy.json").read_text())
    for name in ("epsilon", "delta", "noise_multiplier", "clip_norm", "updates"):
        assert card["privacy"][name] == spent[name]
    assert card["statement"] == spent["statement"]
    assert card["warning"] is None and card["privacy"]["seed_origin"] == "system"
    assert not card["privacy"]["seed_chosen_by_user"]
    assert card["views"]["views_per_example"] == 3
    assert card["training_data"] == {"name": "digits", "num_examples": 1294}
    assert card["public_pool_sha256"] is None
    assert card["software"]["tensorflow"] == tf.__version__
    final = json.loads((trained / "metrics.jsonl").read_text().splitlines()[-1])
    assert card["test_accuracy"] == final["test_accuracy_ema"]
    page = (exported / "assets.extra" / "privacy_card.md").read_text()
    assert page == privacy_card.to_markdown(card)
    as_html = (exported / "assets.extra" / "privacy_card.html").read_text()
    assert as_html == privacy_card.to_html(card)
    assert spent["statement"].split("\n")[0] in page
    assert "| epsilon | 8.000 |" in page


def test_cards_that_are_none_are_refused(exported, tmp_path):
    for version in (1, 2):
        jsonschema.Draft202012Validator.check_schema(privacy_card.schema(version))
    card = privacy_card.read_card(exported)
    path = tmp_path / "card.json"
    for change in (
        {"statement": None},
        {"privacy": card["privacy"] | {"delta": 0}},
        {"privacy": card["privacy"] | {"seed": "123"}},
        {"surprise": 1},
        {"schema_version": 3},
        {"schema_version": 1},
    ):
        path.write_text(json.dumps(card | change))
        with pytest.raises(DPMixError, match="not a valid privacy card"):
            privacy_card.read_card(path)
    for text in ("", "[" * 100_000, "[]"):
        path.write_text(text)
        with pytest.raises(DPMixError, match="(no|not a valid) privacy card"):
            privacy_card.read_card(path)
    with pytest.raises(DPMixError, match="Expected a model exported"):
        privacy_card.read_card(tmp_path)


def with_seed(trained, folder, origin):
    """A copy of a run whose seed came from elsewhere."""
    shutil.copytree(trained, folder)
    arrays, metadata = checkpoints.load_latest(folder / "checkpoints")
    for entry in metadata["ledger"]:
        entry["conditions"].append(f"{origin}_seed")
    checkpoints.save(folder / "checkpoints", arrays, metadata)
    return folder


def test_a_run_with_a_chosen_seed_is_exported_for_research_only(trained, tmp_path):
    workdir = with_seed(trained, tmp_path / "run", "chosen")
    for attempt in (
        lambda: export.export_saved_model(workdir, tmp_path / "models"),
        lambda: export.export_file(workdir, tmp_path / "x.keras"),
    ):
        with pytest.raises(DPMixError, match="No guarantee while the seed is known"):
            attempt()
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    export.export_file(workdir, tmp_path / "x.keras", research=True)
    card = json.loads((tmp_path / "x.keras.privacy_card.json").read_text())
    assert next(iter(card)) == "warning"
    for text in (card["warning"], card["statement"]):
        assert text.startswith("No guarantee while the seed is known")
    assert card["privacy"]["epsilon"] is None  # for who reads nothing else
    page = (tmp_path / "x.keras.privacy_card.md").read_text().splitlines()
    assert page[:2] == ["# Privacy card", ""]
    assert page[2].startswith("**No guarantee while the seed is known")
    assert "| epsilon | none: no guarantee |" in page
    # What says so is the run's checkpoint, not a configuration that can be edited.
    config = json.loads((workdir / "config.json").read_text())
    assert config["seed"] is None


def test_a_run_that_shares_its_seed_is_exported_with_that_word(trained, tmp_path):
    workdir = with_seed(trained, tmp_path / "run", "shared")
    export.export_file(workdir, tmp_path / "x.keras")
    card = privacy_card.read_card(tmp_path / "x.keras.privacy_card.json")
    assert "publish at most one of them" in card["warning"]
    assert card["statement"].startswith(card["warning"])
    assert card["privacy"]["epsilon"] is not None
    page = privacy_card.to_markdown(card)
    assert page.splitlines()[2] == f"**{card['warning']}**"
    assert "| seed | secret, shared by the runs of an experiment |" in page


def test_an_unfinished_run_is_exported_as_what_it_is(trained, tmp_path):
    """Updates on record beyond the checkpoint are counted; accuracy is unknown."""
    workdir = tmp_path / "run"
    shutil.copytree(trained, workdir)
    (workdir / "metrics.jsonl").unlink()
    newest = sorted((workdir / "checkpoints").iterdir())[-1]
    arrays, metadata = checkpoints.load_latest(workdir / "checkpoints")
    newest.unlink()
    checkpoints.save(workdir / "checkpoints", arrays, metadata | {"updates": 4})
    card = privacy_card.read_card(export.export_saved_model(workdir, tmp_path / "m"))
    assert card["model"]["after_update"] == 4
    assert card["privacy"]["updates"] == 6
    assert card["test_accuracy"] is None
    assert "| test accuracy | not measured |" in privacy_card.to_markdown(card)


def test_nothing_secret_is_exported(trained, exported, tmp_path):
    for name in ("digits.keras", "digits.tflite"):
        export.export_file(trained, tmp_path / name)
    arrays, metadata = checkpoints.load_latest(trained / "checkpoints")
    seed = int(metadata["seed"], 16)
    train = load_dataset("digits").train
    secrets = {
        "seed, hexadecimal": metadata["seed"].lstrip("0").encode(),
        "seed, decimal": str(seed).encode(),
        "seed, big-endian": seed.to_bytes(16, "big")[:8],
        "seed, little-endian": seed.to_bytes(16, "little")[:8],
        "data's fingerprint": metadata["data_fingerprint"].encode(),
        "path of the run": str(trained).encode(),
        "path of the code": str(ROOT).encode(),
        **{
            f"example {index}": train.read([index])[0].tobytes()
            for index in range(0, len(train), 50)
        },
    }
    files = [path for path in exported.rglob("*") if path.is_file()]
    files += [path for path in tmp_path.iterdir() if path.is_file()]
    assert len(files) > 8
    for path in files:
        data = path.read_bytes()
        for name, secret in secrets.items():
            assert secret not in data, f"{name} in {path.name}"
    kept = (trained / "checkpoints").iterdir()  # the search does find
    assert any(secrets["seed, hexadecimal"] in path.read_bytes() for path in kept)


def test_versions_count_up_and_are_never_replaced(trained, exported, tmp_path):
    models = tmp_path / "digits"
    assert export.export_saved_model(trained, models) == models / "1"
    assert export.export_saved_model(trained, models / "7") == models / "7"
    assert export.export_saved_model(trained, models, weights="raw") == models / "8"
    for version in ("1", "7", "8"):
        names = (models / version / "assets" / "class_names.txt").read_text()
        assert names.split() == [str(digit) for digit in range(10)]
    with pytest.raises(DPMixError, match="the next version is 9"):
        export.export_saved_model(trained, models / "7")
    assert privacy_card.read_card(models)["model"]["weights"] == "raw"
    assert sorted(p.name for p in models.iterdir()) == [".lock", "1", "7", "8"]


def test_what_answers_differently_is_not_exported(trained, tmp_path, monkeypatch):
    right = signatures.probabilities_of

    def wrong(network, images, task):
        return right(network, images, task) + 1e-3

    monkeypatch.setattr(export, "probabilities_of", wrong)
    with pytest.raises(DPMixError, match="answers differently"):
        export.export_saved_model(trained, tmp_path / "models")
    monkeypatch.setattr(export, "_load_keras", lambda path, task: lambda images: np.nan)
    writer = (export._save_keras, export._load_keras, "a Keras file")
    monkeypatch.setitem(export._WRITERS, ".keras", writer)
    with pytest.raises(DPMixError, match="answers differently"):
        export.export_file(trained, tmp_path / "models" / "x.keras")
    assert [p.name for p in (tmp_path / "models").iterdir()] == [".lock"]


def test_what_cannot_be_exported_is_refused(trained, tmp_path):
    with pytest.raises(DPMixError, match="no checkpoint"):
        export.export_saved_model(tmp_path, tmp_path / "models")
    with pytest.raises(DPMixError, match=".keras or .tflite"):
        export.export_file(trained, tmp_path / "model.onnx")
    (tmp_path / "file").write_text("")
    with pytest.raises(DPMixError, match="Cannot write"):
        export.export_saved_model(trained, tmp_path / "file" / "models")
    with pytest.raises(DPMixError, match="Cannot write"):
        export.export_file(trained, tmp_path / "file" / "x.keras")


def test_files_are_read_back_by_keras_and_litert(trained, images, tmp_path):
    path = export.export_file(trained, tmp_path / "x.keras", weights="raw")
    network = keras.models.load_model(path)
    np.testing.assert_allclose(
        tf.nn.softmax(network(images / 255.0)),
        expected(trained, images, "raw"),
        atol=1e-6,
    )
    card = json.loads((tmp_path / "x.keras.privacy_card.json").read_text())
    assert privacy_card.check_card(card, "")["model"]["weights"] == "raw"
    path = export.export_file(trained, tmp_path / "x.tflite", data_name="scans")
    answer = export._load_litert(path, "single_label")(images)
    np.testing.assert_allclose(answer, expected(trained, images), atol=1e-5)
    card = privacy_card.read_card(tmp_path / "x.tflite.privacy_card.json")
    assert card["training_data"]["name"] == "scans"


def encoder_of_ones_own():
    inputs = keras.Input((16, 16, 3))
    x = keras.layers.Conv2D(8, 3, strides=2)(inputs)
    x = keras.layers.ReLU()(keras.layers.BatchNormalization()(x))
    return keras.Model(inputs, keras.layers.Conv2D(16, 3)(x))


def checkpointed(network, dtype_policy, workdir):
    """A run of that network that has stopped before its first update."""
    config = small_config()
    config.network, config.dtype_policy = network, dtype_policy
    trainer = Trainer(config, workdir)
    random = np.random.default_rng(0)
    for variable in [v for group in trainer.model.state().values() for v in group]:
        if tf.as_dtype(variable.dtype).is_floating:  # the heads begin at zero
            noise = random.normal(size=variable.shape)
            variable.assign_add(0.1 * noise.astype(np.float32))
    trainer._checkpoint()
    trainer._close()
    return trainer.model


WIDE = {"name": "wide_resnet", "depth": 10, "width": 1, "groups": 4}
TRANSFORMER = {"name": "vision_transformer", "depth": 1, "width": 24, "heads": 3}


@pytest.mark.slow
@pytest.mark.parametrize(
    "network",
    [
        {"name": "convnet", "widths": (8,), "groups": 4},
        WIDE | {"weight_standardization": True},
        {"name": "scattering", "hidden": (8,), "filters": 8},
        TRANSFORMER,
        {"name": "pretrained", "encoder": "own.keras"},
    ],
    ids=lambda network: network["name"],
)
def test_every_network_is_exported_in_every_format(
    network, images, tmp_path, monkeypatch
):
    """Also where it was trained in bfloat16: what is exported computes in float32."""
    monkeypatch.chdir(tmp_path)
    encoder_of_ones_own().save("own.keras")
    model = checkpointed(network, "mixed_bfloat16", tmp_path / "run")
    version = export.export_saved_model(tmp_path / "run", tmp_path / "models")
    served = tf.saved_model.load(str(version)).signatures["serving_default"]
    answers = served(images=tf.constant(images))["probabilities"]
    assert answers.dtype == tf.float32
    assert np.std(answers, axis=0).max() > 1e-3  # it tells images apart
    with model.average.applied():
        trained = tf.nn.softmax(tf.cast(model(images / 255.0), tf.float32))
    np.testing.assert_allclose(answers, trained, atol=0.1)  # bfloat16 has eight bits
    export.export_file(tmp_path / "run", tmp_path / "x.keras")
    export.export_file(tmp_path / "run", tmp_path / "x.tflite")


@pytest.mark.slow
def test_an_encoder_that_is_a_saved_model_is_exported_as_one(tmp_path):
    encoder_of_ones_own().export(tmp_path / "own", verbose=False)
    network = {"name": "pretrained", "encoder": str(tmp_path / "own")}
    network["image_size"] = 16
    checkpointed(network, "mixed_bfloat16", tmp_path / "run")
    export.export_saved_model(tmp_path / "run", tmp_path / "models")
    export.export_file(tmp_path / "run", tmp_path / "x.tflite")
    with pytest.raises(DPMixError, match="Export it as a SavedModel"):
        export.export_file(tmp_path / "run", tmp_path / "x.keras")
    assert not (tmp_path / "x.keras").exists()


def test_what_litert_lacks_is_said(tmp_path):
    images = keras.Input((8, 8, 1))
    cubic = keras.ops.image.resize(images, (4, 4), interpolation="bicubic")
    network = keras.Model(images, keras.layers.Flatten()(cubic))
    with pytest.raises(DPMixError, match="LiteRT cannot run .*Export it as a Saved"):
        export._save_litert(network, tmp_path / "x.tflite", "single_label")


@pytest.mark.slow
def test_killed_exports_leave_no_half_version(trained, tmp_path):
    models = tmp_path / "models"
    command = [sys.executable, str(ROOT / "bin" / "export.py")]
    command += [f"--workdir={trained}", f"--output={models}"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    for wait in (random.uniform(0.5, 5.0) for _ in range(3)):
        process = subprocess.Popen(
            command,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.STDOUT,
        )
        time.sleep(wait)
        process.send_signal(signal.SIGKILL)
        process.wait()
        if models.exists():
            for version in privacy_card.exported_versions(models):
                tf.saved_model.load(str(models / str(version)))
                privacy_card.read_card(models / str(version))
    subprocess.run(command, env=environment, check=True, capture_output=True)
    left = {path.name for path in models.iterdir() if not path.name.isdecimal()}
    assert left == {".lock"}
