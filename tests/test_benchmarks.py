"""The benchmarks run, and what they claim of memory holds; no times are compared."""

import importlib
import json
import re
import subprocess
import sys

import pytest

from tests.conftest import ROOT

pytestmark = pytest.mark.slow


def run(script, path, *arguments):
    """What a benchmark writes to its file."""
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / script, *arguments, f"--json={path}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "| " in done.stdout
    return json.loads(path.read_text())


def test_peak_memory_does_not_grow_with_the_batch(tmp_path):
    small, large = run(
        "memory.py", tmp_path / "memory.json", "--networks=digits", "--batches=128,4096"
    )
    assert (small["batch"], large["batch"]) == (128, 4096)
    # All views of the large batch at once would be a gigabyte of activations.
    assert large["peak_mb"] <= 1.2 * small["peak_mb"]


def test_steps_are_compared(tmp_path):
    results = run(
        "step.py",
        tmp_path / "step.json",
        *("--networks=digits", "--views=1,34", "--repeats=1", "--examples=4"),
    )
    assert [result["views"] for result in results] == [1, 34]
    assert all(result["ratio"] > 0 for result in results)


def test_heads_on_encoded_views_are_measured(tmp_path):
    found = run(
        "encoded.py", tmp_path / "encoded.json", "--heads=encoder", "--repeats=1"
    )
    contestants = {"plain", "closed form", "gradients", "encoding"}
    assert found["encoder"].keys() == contestants


def test_people_are_compared_with_single_images(tmp_path):
    seconds = run("people_update.py", tmp_path / "p.json", "--batch=4", "--repeats=1")
    assert seconds.keys() == {"images", "people"}


def test_people_as_records_are_measured(tmp_path):
    command = [sys.executable, ROOT / "benchmarks" / "people.py", "--updates=2"]
    command += ["--epsilons=8", "--rates=1", "--seeds=1", f"--output={tmp_path}"]
    done = subprocess.run(
        [*command, f"--cache_dir={tmp_path / 'cache'}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((tmp_path / "digits.json").read_text())
    assert [key.partition(" |")[0] for key in found] == [
        "images", "group", "people", "people, mixed"
    ]  # fmt: skip
    assert (tmp_path / "digits.md").read_text().count("| a person |") == 3


def test_features_are_made_beside_kymatios(tmp_path):
    seconds = run(
        "features.py",
        tmp_path / "features.json",
        *("--batch=2", "--repeats=1", "--filters=4"),
    )
    assert len(seconds) == 4 and all(len(each) == 1 for each in seconds.values())


def test_input_is_measured(tmp_path):
    results = run(
        "input.py",
        tmp_path / "input.json",
        *("--examples=200", "--repeats=1", "--batch=8", "--networks=convnet"),
        "--views=1",
    )
    assert {"sampling", "reading", "waiting"} == results.keys()
    assert all(0 <= one["waited"] < 1 for one in results["waiting"])


def test_an_exported_model_is_measured(tmp_path):
    results = run(
        "serving.py",
        tmp_path / "serving.json",
        *("--networks=digits", "--turns=1", "--seconds=0.2"),
    )
    assert [result["batch"] for result in results] == [1, 64]
    assert all(result["ratio"] > 0 for result in results)


def test_two_workers_are_measured(tmp_path):
    results = run(
        "scaling.py",
        tmp_path / "scaling.json",
        *("--network=convnet", "--batch=8", "--repeats=2"),
    )
    assert len(results["seconds"]["one"]) == len(results["seconds"]["two"]) == 2
    # Each of two workers sends about its gradient, no more than twice.
    for sent in results["bytes"]:
        assert 1.5 < sent / (4 * results["parameters"]) < 4


def test_the_cost_model_shares_out_what_can_be_shared(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    costs = importlib.import_module("costs")
    case = costs.Case(
        name="head", examples=1_281_167, batch=16_384, updates=1_000, views=34,
        weights=769_000, forward=1.5e6, features=768, encoder=35e9,
    )  # fmt: skip
    assert case.stored_bytes == 1_281_167 * 34 * (768 * 2 + 2 * (4 + 4))
    measured = costs.Measured(
        sampling={(1_281_167, 16_384): 1e-3},
        decoded=200.0, examined=2e3, hashed=1e9, gathered=3e9, latency=1e-2,
    )  # fmt: skip
    one, many = (costs.parts(case, workers, measured) for workers in (1, 64))
    for name in ("encoding", "compute"):
        assert many[name] == pytest.approx(one[name] / 64)
    for name in ("start-up", "apply"):
        assert many[name] == one[name] > 0
    assert one["all-reduce"] == 0
    sent = 1e-2 + 2 * 63 / 64 * 4 * 769_000 / costs.ASSUMED["outside"][0]
    assert many["all-reduce"] == pytest.approx(1_000 * sent / 3600)
    assert set(costs.REMEDIES) == set(one)


def test_the_page_on_scale_says_where_the_model_was_wrong_by_less_than_a_fifth():
    page = (ROOT / "docs" / "scale.md").read_text()
    rows = re.findall(r"^\| \w+( \| \d+\.\d{3}){5} \| (\d\.\d\d) \|$", page, re.M)
    assert len(rows) == 2 and all(0.8 <= float(ratio) <= 1.2 for _, ratio in rows)


def test_the_cost_of_a_choice_is_computed(tmp_path):
    found = run(
        *("selection.py", tmp_path / "s.json"),
        *("--epsilons=8", "--trials=6", "--updates=50", "--batch_size=1000"),
    )
    assert [row["trials_distribution"] for row in found] == [
        "poisson",
        "geometric",
        "logarithmic",
    ]
    assert all(row["noise"] > 1 and row["spent"] > 8 for row in found)
