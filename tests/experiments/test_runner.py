"""Experiments as their command runs them: killed, resumed, broken, reported."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest

from dpmix_tf.experiments import Run, Runner, Study, default_experiment, processes
from dpmix_tf.experiments.processes import WORKER
from dpmix_tf.experiments.records import Failed, from_json
from dpmix_tf.experiments.runner import _last_words
from dpmix_tf.privacy.ledger import SHARED_SEED
from dpmix_tf.training import checkpoints
from tests.conftest import ROOT
from tests.experiments import tiny

CONFIG = f"--config={ROOT}/tests/experiments/tiny.py"
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")


def command(workdir, kind="good", *more):
    return [
        sys.executable,
        str(ROOT / "bin" / "experiment.py"),
        f"{CONFIG}:{kind}",
        f"--workdir={workdir}",
        "--jobs=2",
        *more,
    ]


def run(*arguments):
    return subprocess.run(
        command(*arguments), cwd=ROOT, capture_output=True, text=True, timeout=600
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("experiment") / "x"
    done = run(folder)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder, done


def records(folder):
    lines = (folder / "results.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def without_names(results):
    """Runs' random names may differ; and the revision, if someone commits meanwhile."""
    for record in results:
        del record["software"]["git_revision"]
        for entry in record["plan"]["ledger"]:
            del entry["run"]
    return results


def wait_for(condition, seconds=600):
    for _ in range(seconds * 10):
        if condition():
            return
        time.sleep(0.1)
    raise AssertionError("it never came to that")


@pytest.mark.slow
def test_arms_are_tuned_on_validation_trained_and_recorded(finished):
    folder, done = finished
    for line in (folder / "results.jsonl").read_text().splitlines():
        assert from_json(line).to_json() == line
    found = records(folder)
    assert [r["tuning"] for r in found] == [True] * 4 + [False] * 4
    for arm in ("plain", "mixed"):
        trials = [r for r in found if r["arm"] == arm and r["tuning"]]
        best = max(trials, key=lambda r: r["curve"][-1]["validation_accuracy_ema"])
        for record in (r for r in found if r["arm"] == arm and not r["tuning"]):
            assert record["tuned"] == best["tuned"]
            rate = record["config"]["optimizer"]["learning_rate"]
            assert rate == best["tuned"]["optimizer.learning_rate"]
            assert record["final"]["updates"] == 12
            assert record["plan"]["updates"] == 12
            assert len(record["final"]["test_accuracy_ema_by_class"]) == 10
            assert [e["updates"] for e in record["curve"]] == [6, 12]
            assert record["software"]["tensorflow"]
        # The test set stays unseen, and a trial's checkpoints do not pile up.
        assert not any("test_accuracy" in r["final"] for r in trials)
    assert not list(folder.glob("tuning/**/checkpoints"))
    assert len(list(folder.glob("runs/**/checkpoints"))) == 4
    assert "8/8" in done.stderr and "ETA" in done.stderr


@pytest.mark.slow
def test_killed_twice_it_finds_what_an_uninterrupted_one_does(finished, tmp_path):
    whole, _ = finished
    folder = tmp_path / "x"
    folder.mkdir()
    shutil.copy(whole / "secret.json", folder)  # as to another machine

    def seen(part, count):
        return lambda: len(list(folder.glob(f"{part}/**/run/privacy.json"))) >= count

    with open(tmp_path / "log", "w") as log:
        first = subprocess.Popen(command(folder), cwd=ROOT, stderr=log)
        wait_for(seen("tuning", 1))
        first.kill()
        first.wait()
        # The runs that it left behind stop by themselves; this one waits for them.
        second = subprocess.Popen(command(folder), cwd=ROOT, stderr=log)
        wait_for(seen("runs", 1))
        second.send_signal(signal.SIGTERM)
        assert second.wait(timeout=300) == 130
    last = run(folder)
    assert last.returncode == 0, last.stderr[-3000:]
    assert without_names(records(folder)) == without_names(records(whole))
    again = run(folder)
    assert again.returncode == 0 and "1/8" not in again.stderr


@pytest.mark.slow
def test_a_process_for_each_run_finds_the_same(finished, tmp_path):
    whole, _ = finished
    shutil.copy(whole / "secret.json", tmp_path)
    runner = Runner(Study(tiny.get_config()), tmp_path, jobs=2, runs_per_worker=1)
    runner.run()
    assert without_names(records(tmp_path)) == without_names(records(whole))


@pytest.mark.slow
def test_runs_share_what_is_encoded(tmp_path, monkeypatch):
    """And find the same as with a cache and a process of their own."""
    study = Study(tiny.get_config("encoded"))
    Runner(study, tmp_path / "shared").run()
    made = list((tmp_path / "shared").glob("**/key.json"))
    assert len(made) == 4  # of two arms, and the validation and the test set
    assert all(path.parents[1] == tmp_path / "shared" / "cache" for path in made)
    (tmp_path / "apart").mkdir()
    shutil.copy(tmp_path / "shared" / "secret.json", tmp_path / "apart")
    config_of = Study.config_of

    def apart(self, run):
        config = config_of(self, run)
        config.run.cache_dir = str(tmp_path / "apart" / run.name / "own")
        return config

    monkeypatch.setattr(Study, "config_of", apart)
    Runner(study, tmp_path / "apart", runs_per_worker=1).run()
    found = [without_names(records(tmp_path / one)) for one in ("shared", "apart")]
    for record in (*found[0], *found[1]):
        del record["config"]["run"]["cache_dir"]
    assert len(found[0]) == 4 and found[0] == found[1]


@pytest.mark.slow
def test_a_process_trains_on_unless_a_run_breaks_it(tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "WORKER", "tests.experiments.odd_worker")
    monkeypatch.chdir(ROOT)
    names = ("a", "b", "raises", "c", "d", "dies", "e")
    config = default_experiment(tiny.get_config().base, {name: {} for name in names})
    config.seeds = 1

    def processes_of(folder, **more):
        found = Runner(Study(config), tmp_path / folder, **more).run()
        for record in found:
            log = (tmp_path / folder / record.run.name / "log.txt").read_text()
            if record.run.arm == "raises":
                assert "ValueError: nobody foresaw this" in record.error
            elif record.run.arm == "dies":
                assert "SIGKILL" in record.error
            else:
                assert log.endswith("training\n") and log.count("training") == 1
        done = [record for record in found if not isinstance(record, Failed)]
        assert len(found) == 7 and len(done) == 5
        return [record.software["process"] for record in done]

    a, b, c, d, e = processes_of("one")
    assert a == b and c == d and len({a, c, e}) == 3
    assert len(set(processes_of("each", runs_per_worker=1))) == 5


@pytest.mark.slow
def test_a_run_whose_runner_was_killed_stops_by_itself(tmp_path):
    """However early: the worker is told whom to watch."""
    settings = Study(tiny.get_config()).config_of(Run("plain", 8.0, 1, (), False))
    settings.privacy.updates = 100_000
    (tmp_path / "settings.json").write_text(settings.to_json())
    gone = subprocess.Popen(["true"])
    gone.wait()
    done = subprocess.run(
        [sys.executable, "-m", WORKER, str(gone.pid)],
        input=json.dumps(str(tmp_path)).encode() + b"\n",
        cwd=ROOT,
        capture_output=True,
        timeout=120,
    )
    assert done.returncode != 0


@pytest.mark.slow
def test_the_secret_is_in_no_file_but_its_own(finished):
    """And seeds in checkpoints alone, the same in both arms."""
    folder, done = finished
    assert (folder / "secret.json").stat().st_mode & 0o077 == 0
    key = json.loads((folder / "secret.json").read_text())["secret"]
    seeds = {}
    for path in folder.glob("runs/*/*/*/*/run/checkpoints"):
        _, metadata = checkpoints.load_latest(path)
        (entry,) = metadata["ledger"]
        assert SHARED_SEED in entry["conditions"]
        seeds.setdefault(path.parts[-3], set()).add(metadata["seed"])
    assert [len(same) for same in seeds.values()] == [1, 1] and len(seeds) == 2
    hidden = [key, *(seed for same in seeds.values() for seed in same)]
    hidden += [str(int(seed, 16)) for seed in hidden[1:]]
    files = [path for path in folder.rglob("*") if path.is_file()]
    texts = [path.read_bytes() for path in files if path.name != "secret.json"]
    texts = [data for data in texts if not data.startswith(b"PK")]  # checkpoints
    assert len(texts) > 50
    for text in [*texts, done.stdout.encode(), done.stderr.encode()]:
        assert not any(word.encode() in text for word in hidden)
    record = records(folder)[-1]
    assert record["config"]["seed"] is None
    assert "publish at most one of them" in record["plan"]["warning"]


def test_failures_are_told_as_what_they_are(tmp_path):
    log = tmp_path / "log.txt"
    log.write_text("CUDA error: none here\nerror: no such pool\nerror: the last\n")
    assert _last_words(log, 2) == "the last"
    assert "SIGKILL" in _last_words(log, -9)
    log.write_text("CUDA error: none here\nTraceback\nOSError: full")
    assert _last_words(log, 1).endswith("OSError: full")
    log.write_text("")
    assert "exit status 1" in _last_words(log, 1)


@pytest.mark.slow
def test_broken_arms_say_why_and_do_not_stop_the_others(tmp_path):
    done = run(tmp_path, "broken")
    assert done.returncode == 1
    by_arm = {r["arm"]: r for r in records(tmp_path)}
    good = {"plain", "mixed", "third"}
    assert {arm for arm, r in by_arm.items() if r["status"] == "done"} == good
    assert "views.bass" in by_arm["misspelt"]["error"]
    assert "cannot be built" in by_arm["impossible"]["error"]
    assert "base must be" in by_arm["refused"]["error"]
    for arm in ("misspelt", "impossible", "refused"):
        assert "Traceback" not in by_arm[arm]["error"]
        assert f"failed: {arm} epsilon=8 seed=1: " in done.stderr
    report = (tmp_path / "report.md").read_text()
    assert "3 of 6 planned runs" in report
    assert "| misspelt" not in report and "misspelt, epsilon 8, seed 1: " in report


@pytest.mark.slow
def test_the_report_holds_every_figure_of_the_results(finished):
    folder, _ = finished
    text = (folder / "report.md").read_text()
    for arm in ("plain", "mixed"):
        values = [
            100 * r["final"]["test_accuracy_ema"]
            for r in records(folder)
            if r["arm"] == arm and not r["tuning"]
        ]
        assert f"| {arm} | {sum(values) / 2:.2f} (" in text
    pictures = re.findall(r"!\[.*?\]\((.*?)\)", text)
    assert set(pictures) == {
        "accuracy.png",
        "training.png",
        "classes.png",
        "views.png",
        "over_base.png",
    }
    assert all((folder / name).stat().st_size > 3000 for name in pictures)
    assert "mixed is " in text and "significant." in text
    assert "| plain | 8 | " in text and "99.9 (.1)" in text  # published beside ours
    assert "publish at most one: two together have none" in text
    assert "not the validation examples" in text
    assert "Papernot" in text and "tensorflow 2" in text
    html = (folder / "report.html").read_text()
    assert html.count("data:image/png;base64,") == len(pictures)
    assert "http" not in re.sub(r"base64,[^\"]*", "", html)


def chromium():
    given = os.environ.get("DPMIX_CHROMIUM")
    return given or next(filter(None, map(shutil.which, BROWSERS)), None)


@pytest.mark.slow
@pytest.mark.skipif(chromium() is None, reason="needs Chromium, or DPMIX_CHROMIUM")
@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_opens_in_chromium(finished, width):
    """Without an error or a missing picture; no wider than the screen; sorted."""
    from playwright.sync_api import sync_playwright

    folder, _ = finished
    with sync_playwright() as driver:
        browser = driver.chromium.launch(
            executable_path=chromium(), args=["--no-sandbox", "--no-zygote"]
        )
        page = browser.new_page(viewport={"width": width, "height": 844})
        errors = []
        page.on("console", lambda m: m.type == "error" and errors.append(m.text))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("request", lambda r: r.url[:4] == "http" and errors.append(r.url))
        page.goto(f"file://{folder}/report.html")
        assert page.title() == "Tiny"
        images = page.evaluate(
            "[...document.images].map(i => i.complete && i.naturalWidth > 100)"
        )
        assert len(images) == 5 and all(images)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        column = "[...document.querySelectorAll('table')[1].tBodies[0].rows].map("
        column += "row => parseFloat(row.cells[1].textContent))"
        for reverse in (False, True):
            page.locator("table").nth(1).locator("th button").nth(1).click()
            values = page.evaluate(column)
            assert values == sorted(values, reverse=reverse) and len(values) == 2
        browser.close()
    assert not errors
