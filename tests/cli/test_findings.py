"""A table of findings as hospitals have it: from training to predictions for it."""

import csv
import json
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from dpmix_tf.serving.privacy_card import read_card
from tests.conftest import ROOT

FINDINGS = ("effusion", "edema", "nodule", "fracture", "pneumothorax")
PREVALENCE = (0.4, 0.25, 0.15, 0.1, 0.05)
PEOPLE = 120


def draw(has, random):
    """A grey image of 16x16 with a mark for each finding that somebody has."""
    image = random.normal(90, 12, (16, 16))
    rows, columns = np.mgrid[:16, :16]
    image[11:, 2:14] += 70 * has[0]
    image[2:10:3, 3:13] += 45 * has[1]
    middle = random.integers(4, 12, 2)
    disc = (rows - middle[0]) ** 2 + (columns - middle[1]) ** 2 < 6
    image[disc] += 80 * has[2]
    image[np.abs(rows - columns) < 2] += 90 * has[3]
    image[:, :3] -= 60 * has[4]
    return Image.fromarray(np.clip(image, 0, 255).astype(np.uint8))


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """One to five images of each patient, some findings blank or not certain."""
    home, random, lines = tmp_path_factory.mktemp("chest"), np.random.default_rng(0), []
    for person in range(PEOPLE):
        has = random.random(5) < PREVALENCE
        for number in range(random.integers(1, 6)):
            path = f"{person:03d}_{number}.png"
            draw(has, random).save(home / path)
            cells = [
                "" if chance < 0.1 else "-1" if chance < 0.13 else str(int(finding))
                for finding, chance in zip(has, random.random(5), strict=True)
            ]
            lines.append([path, f"p{person:03d}", "FM"[person % 2], *cells])
    with open(home / "chest.csv", "w", newline="") as file:
        csv.writer(file).writerows([["path", "patient", "sex", *FINDINGS], *lines])
    return home / "chest.csv"


CONFIG = """
from dpmix_tf.training import default_config

def get_config():
    config = default_config()
    config.data.update(name="table", table={table!r}, image_size=16, channels=1)
    config.data.update(person="patient", label_columns={findings!r})
    config.network.update(name="scattering", features="scattering")
    config.views.update(base=4, mixed=2, augment="none", visits=1)
    config.privacy.update(
        epsilon=8.0, delta=1e-4, expected_batch_size=60, updates=40,
        clipping="automatic", accountant="rdp",
    )
    config.optimizer.update(name="SGD", learning_rate=2.0, momentum=0.9)
    config.run.update(evaluate_every=40, checkpoint_every=40)
    config.ema_decay = 0.9
    return config
"""


def run(command, *flags):
    done = subprocess.run(
        [sys.executable, str(ROOT / "bin" / f"{command}.py"), *map(str, flags)],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_from_a_table_of_findings_to_predictions_for_it(table, tmp_path):
    config, workdir = tmp_path / "config.py", tmp_path / "run"
    config.write_text(CONFIG.format(table=str(table), findings=FINDINGS))
    said = run("train", f"--config={config}", f"--workdir={workdir}")
    assert "adding or removing one person with all their images" in said
    assert "test AUROC, EMA" in said
    spent = json.loads((workdir / "privacy.json").read_text())
    assert spent["record"] == "person" and 60 < spent["num_examples"] < PEOPLE

    found = json.loads(
        run("evaluate", f"--workdir={workdir}", "--per_person", "--by=sex")
    )
    mean = found["figures_ema"]["mean_auroc"]
    assert (
        mean["low"] < mean["value"] == pytest.approx(found["test_auroc_ema"], abs=1e-5)
    )
    assert mean["value"] > 0.8  # chance is 0.5
    assert found["per_person_ema"]["examples"] < found["examples"]
    groups = found["by_sex_ema"]["groups"]
    assert sum(group["size"] for group in groups.values()) < found["examples"]

    run("export", f"--workdir={workdir}", f"--output={tmp_path / 'model'}")
    card = read_card(tmp_path / "model")
    assert card["model"]["task"] == "multi_label"
    assert card["privacy"]["record"] == "person"
    assert card["test_figures"]["mean_auroc"] == mean
    assert "positives" not in str(card)  # of whom there may be one
    page = (tmp_path / "model/1/assets.extra/privacy_card.md").read_text()
    assert "| test AUROC, edema |" in page and " people |" in page

    output = tmp_path / "out.csv"
    run("predict", f"--workdir={workdir}", f"--table={table}", f"--output={output}")
    with open(table) as before, open(output) as after:
        given, made = list(csv.DictReader(before)), list(csv.DictReader(after))
    assert [row["path"] for row in made] == [row["path"] for row in given]
    served = tf.saved_model.load(str(tmp_path / "model/1")).signatures["serving_bytes"]
    for row in made[:3]:
        data = tf.constant([(table.parent / row["path"]).read_bytes()])
        expected = served(image_bytes=data)["probabilities"][0].numpy()
        ours = [float(row[f"probability_{name}"]) for name in FINDINGS]
        np.testing.assert_allclose(ours, expected, atol=1e-4)
    assert abs(sum(ours) - 1) > 1e-3  # each finding has its own
