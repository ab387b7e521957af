"""The benchmarks run, and what they claim of memory holds; no times are compared."""

import json
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
