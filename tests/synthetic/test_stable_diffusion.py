"""KerasCV's Stable Diffusion: the real classes, with small or random weights."""

import os
import subprocess
import sys
import threading
import time

import keras
import numpy as np
import pytest
from keras_cv.models import stable_diffusion as parts

from dpmix_tf import weights
from dpmix_tf.errors import DPMixError
from dpmix_tf.synthetic import SyntheticPool, fill, pool, stable_diffusion
from dpmix_tf.training.config import default_pool
from tests.conftest import ROOT
from tests.synthetic.narrow import narrow

VOCABULARY = ROOT.parent / "shared" / "clip" / "bpe_simple_vocab_16e6.txt.gz"


@pytest.mark.parametrize(
    ("class_name", "expected"),
    [
        ("/a/airplane_cabin", "airplane cabin"),
        ("/c/church/indoor", "church indoor"),
        ("001.ak47", "ak47"),
        ("252.car-side-101", "car side"),
        ("Abyssinian", "Abyssinian"),
        ("great_pyrenees", "great pyrenees"),
        ("automobile", "automobile"),
    ],
)
def test_class_names_are_cleaned_for_prompts(class_name, expected):
    assert stable_diffusion.clean_name(class_name) == expected


def test_prompts_are_taken_in_turn_and_classes_may_have_their_own():
    templates = ("a photo of a {name}", "a drawing of a {name}")
    own = {"AnnualCrop": "a satellite photo of annual crop land"}
    made = [
        stable_diffusion.prompt_for(name, index, templates, own)
        for name, index in (("cat", 0), ("cat", 1), ("cat", 2), ("AnnualCrop", 1))
    ]
    assert made == [
        "a photo of a cat",
        "a drawing of a cat",
        "a photo of a cat",
        "a satellite photo of annual crop land",
    ]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"version": "3"}, "pool.version must be one of 1.4, 2.1"),
        ({"generated_size": 200}, "multiple of 128"),
        ({"steps": 1}, "pool.steps must be"),
    ],
)
def test_settings_that_generate_nothing_are_refused(change, words):
    with pytest.raises(DPMixError, match=words):
        stable_diffusion.Generator(default_pool().to_dict() | change)


@pytest.fixture(scope="module")
def decoder_file(tmp_path_factory):
    """Random weights of the real decoder, in Keras 2's legacy H5 layout."""
    import h5py
    from keras.src.legacy.saving import legacy_h5_format

    decoder = parts.Decoder(128, 128, download_weights=False)
    path = tmp_path_factory.mktemp("weights") / "kcv_decoder.h5"
    with h5py.File(path, "w") as file:
        legacy_h5_format.save_weights_to_hdf5_group(file, decoder)
    return path, decoder


@pytest.mark.slow
def test_the_real_decoder_loads_weights_in_keras_2s_layout(decoder_file):
    import h5py

    path, decoder = decoder_file
    with h5py.File(path) as file:  # as Keras 2 wrote it, and as the published files are
        assert "layer_names" in file.attrs and "layers" not in file
    other = parts.Decoder(128, 128, download_weights=False)
    latent = np.random.default_rng(0).normal(size=(1, 16, 16, 4)).astype(np.float32)
    before = np.asarray(other(latent))
    weights.load_weights(other, path)
    np.testing.assert_allclose(other(latent), decoder(latent), atol=2e-5)
    assert np.abs(before - other(latent)).max() > 1e-3


@pytest.mark.slow
def test_weights_of_another_model_or_half_a_file_are_refused(decoder_file, tmp_path):
    path, decoder = decoder_file
    half = tmp_path / "half.h5"
    half.write_bytes(path.read_bytes()[:100_000])
    with pytest.raises(DPMixError, match="half.h5"):
        weights.load_weights(decoder, half)
    half.write_text("<html>404</html>")
    with pytest.raises(DPMixError, match="not an H5 file"):
        weights.load_weights(decoder, half)
    wrong = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    with pytest.raises(DPMixError, match="does not hold the weights"):
        weights.load_weights(wrong, path)
    with pytest.raises(DPMixError, match="Weights file"):
        weights.digest(tmp_path / "nowhere.h5")


def test_without_a_network_the_way_out_is_named(monkeypatch):
    def no_network(*arguments, **settings):
        raise OSError("URL fetch failure")

    monkeypatch.setattr(keras.utils, "get_file", no_network)
    settings = default_pool().to_dict()
    tiny = stable_diffusion.VERSIONS["1.4"]._replace(
        text_encoder=lambda *a, **k: keras.utils.get_file()
    )
    monkeypatch.setitem(stable_diffusion.VERSIONS, "1.4", tiny)
    with pytest.raises(DPMixError, match="--config.pool.weights.text_encoder=PATH"):
        stable_diffusion.Generator(settings)


def generate(folder, weights):
    return subprocess.Popen(
        [
            sys.executable,
            *("-m", "tests.synthetic.narrow"),
            f"--config={ROOT}/configs/cifar10_diff.py",
            f"--config.pool.path={folder}",
            "--config.data.name=image_folder",
            f"--config.data.data_dir={weights}/classes",
            "--config.data.image_size=32",
            "--config.pool.images_per_class=1",
            "--config.pool.batch_size=1",
            "--config.pool.generated_size=128",
            "--config.pool.steps=2",
            f"--config.pool.weights.vocabulary={VOCABULARY}",
            *(
                f"--config.pool.weights.{part}={weights}/{part}.weights.h5"
                for part in ("text_encoder", "diffusion_model", "decoder")
            ),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        cwd=ROOT,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
    )


def kill_after_an_image(process, folder):
    while process.poll() is None and not list(folder.glob("*/*.png")):
        time.sleep(0.05)
    process.kill()


@pytest.mark.slow
@pytest.mark.skipif(
    not VOCABULARY.exists(), reason="needs CLIP's vocabulary in ../shared/clip"
)
def test_the_real_pipeline_is_killed_resumes_and_ends_bit_equal(
    tmp_path, monkeypatch, capsys
):
    """Real tokenizer, text encoder, U-Net and decoder; random weights, 128x128.

    The command is killed, in a process of its own; this one resumes what it left.
    """
    narrow(monkeypatch.setattr)
    built = {
        "text_encoder": parts.TextEncoder(77, download_weights=False),
        "diffusion_model": parts.DiffusionModel(128, 128, 77, download_weights=False),
        "decoder": parts.Decoder(128, 128, download_weights=False),
    }
    for part, model in built.items():
        model.save_weights(tmp_path / f"{part}.weights.h5")
    for name in ("cat", "dog"):
        (tmp_path / "classes" / name).mkdir(parents=True)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    process = generate(killed, tmp_path)
    killer = threading.Thread(target=kill_after_an_image, args=(process, killed))
    killer.start()

    # Meanwhile uninterrupted, and later resumed, in this process, on the models that
    # are already built: building them takes longer than generating.
    version = stable_diffusion.VERSIONS["1.4"]._replace(
        text_encoder=lambda *sizes, **settings: built["text_encoder"],
        diffusion_model=lambda *sizes, **settings: built["diffusion_model"],
    )
    monkeypatch.setitem(stable_diffusion.VERSIONS, "1.4", version)
    monkeypatch.setattr(parts, "Decoder", lambda *sizes, **settings: built["decoder"])
    settings = default_pool().to_dict() | {
        "generator": "stable_diffusion",
        "images_per_class": 1,
        "batch_size": 1,
        "generated_size": 128,
        "steps": 2,
        "weights": {
            "vocabulary": str(VOCABULARY),
            **{part: str(tmp_path / f"{part}.weights.h5") for part in built},
        },
    }
    fill.generate(whole, settings, ("cat", "dog"), (32, 32, 3))
    assert "CreativeML Open RAIL-M" in capsys.readouterr().out

    killer.join()
    said = process.communicate()[0].decode()
    made = {path: path.stat().st_mtime_ns for path in killed.glob("*/*.png")}
    assert len(made) == 1, said[-2000:]
    fill.generate(killed, settings, ("cat", "dog"), (32, 32, 3))
    assert all(path.stat().st_mtime_ns == when for path, when in made.items())

    one, other = SyntheticPool.load(killed), SyntheticPool.load(whole)
    assert one.digest == other.digest
    images = {image.tobytes() for image in one.images}
    assert len(images) == 2
    manifest = pool.read_manifest(whole)
    assert manifest["images"][0]["prompt"] == "a photo of a cat"
    assert manifest["generator"]["licence"] == "CreativeML Open RAIL-M"
    assert len(manifest["generator"]["weights"]["diffusion_model"]) == 64
