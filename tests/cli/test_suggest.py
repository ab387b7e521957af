"""bin/suggest.py: its file trains as it is, and nothing is overwritten."""

import json

import numpy as np
import pytest
from PIL import Image

from tests.cli.test_commands import run

GIVEN = ("--num_examples=48", "--epsilon=8", "--delta=1e-3", "--image_size=8")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """60 images of two classes, which a fifth each of leaves for the test."""
    folder = tmp_path_factory.mktemp("photos")
    random = np.random.default_rng(0)
    for index in range(60):
        path = folder / "ab"[index % 2] / f"{index}.png"
        path.parent.mkdir(exist_ok=True)
        pixels = random.integers(0, 128, (8, 8, 3)) + 127 * (index % 2)
        Image.fromarray(pixels.astype(np.uint8)).save(path)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(("network", "minutes"), [("convnet", 0.01), ("scattering", 1)])
def test_what_is_suggested_trains_and_is_evaluated_as_it_is(
    network, minutes, photos, tmp_path
):
    config, workdir = tmp_path / "suggested.py", tmp_path / "run"
    command = ("suggest", *GIVEN, f"--network={network}", f"--minutes={minutes}")
    said = run(*command, f"--output={config}")
    assert said.returncode == 0, said.stderr
    assert "privacy.delta = 0.001\n    given" in said.stdout
    text = config.read_text()
    assert f"--network={network} --minutes={minutes:.1f}".rstrip("0.") in text
    assert str(tmp_path) not in text
    data = f"--config.data.data_dir={photos}"
    done = run("train", f"--config={config}", data, f"--workdir={workdir}")
    assert done.returncode == 0, done.stderr
    used = json.loads((workdir / "config.json").read_text())
    spent = json.loads((workdir / "privacy.json").read_text())
    assert spent["updates"] == used["privacy"]["updates"] > 20
    assert 7.9 < spent["epsilon"] <= 8 and spent["delta"] == 1e-3
    for field in ("privacy.updates", "optimizer = name=SGD"):
        assert field in said.stdout
    assert run("evaluate", f"--workdir={workdir}").returncode == 0
    again = run(*command, f"--output={config}")
    assert again.returncode == 2 and "exists, and is not overwritten" in again.stderr
    assert config.read_text() == text


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ((), "--network is missing"),
        (("--network=lenet", "--minutes=1"), "--network must be one of convnet"),
        (("--network=convnet", "--minutes=1", "--data=x"), "--data must be one of"),
        (("--network=convnet", "--minutes=1e-6"), "minutes are too few"),
    ],
)
def test_what_cannot_be_suggested_is_refused(flags, words, tmp_path):
    output = tmp_path / "suggested.py"
    done = run("suggest", *GIVEN, *flags, f"--output={output}")
    assert done.returncode == 2 and words in done.stderr
    assert "Traceback" not in done.stderr and not output.exists()
