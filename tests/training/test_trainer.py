import errno
import json
import os
import signal
import subprocess
import sys
import time
import zipfile

import numpy as np
import pytest

from dpmix_tf import files
from dpmix_tf.data import ExampleSource
from dpmix_tf.errors import DivergedError, DPMixError
from dpmix_tf.privacy import PrivacyPlan
from dpmix_tf.privacy.ledger import SHARED_SEED
from dpmix_tf.training import Trainer, checkpoints, default_config, restore_network
from tests.conftest import spending, train_command


def small_config(**privacy):
    config = default_config()
    config.seed = 5
    config.network.update(name="convnet", widths=(8,), groups=4)
    config.views.base, config.views.mixed, config.views.padding = 2, 1, 1
    config.privacy.update(
        epsilon=8.0,
        delta=1e-4,
        expected_batch_size=20,
        updates=8,
        accountant="rdp",
    )
    config.privacy.update(privacy)
    config.run.evaluate_every = 4
    config.run.checkpoint_every = 2
    return config


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The workdir of a finished run, and what it returned."""
    workdir = tmp_path_factory.mktemp("run")
    return workdir, Trainer(small_config(), workdir).run()


def read(workdir, name):
    return json.loads((workdir / name).read_text())


def events(workdir):
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_a_run_writes_what_it_did_and_spent(finished):
    workdir, result = finished
    assert result["event"] == "final" and result["updates"] == 8
    assert events(workdir)[-1] == result
    assert {"test_accuracy", "test_accuracy_ema", "epsilon"} <= result.keys()
    assert [event["updates"] for event in events(workdir)] == [4, 8, 8]
    spent = read(workdir, "privacy.json")
    plan = PrivacyPlan(
        noise_multiplier=spent["noise_multiplier"],
        delta=1e-4,
        num_examples=1294,
        expected_batch_size=20,
        updates=8,
        accountant="rdp",
    )
    assert spent["updates"] == 8 and spent["seed_chosen_by_user"]
    assert spent["epsilon"] == plan.epsilon() <= 8.0
    assert "adding or removing one example" in spent["statement"]
    assert list((workdir / "tensorboard").glob("events*"))
    names = sorted(path.name for path in (workdir / "checkpoints").iterdir())
    assert names == ["update_000000006.npz", "update_000000008.npz"]


def test_a_chosen_seed_is_told_before_all_else(finished):
    spent = read(finished[0], "privacy.json")
    assert next(iter(spent)) == "warning"
    for text in (spent["warning"], spent["statement"]):
        assert text.startswith("No guarantee while the seed is known")
    assert spent["seed_origin"] == "chosen"


def untrained(config, workdir, **settings):
    """Writes what a run does, but for its updates."""
    trainer = Trainer(config, workdir, **settings)
    trainer._checkpoint()
    trainer.workdir.write_privacy(trainer.model)
    trainer._close()


def test_a_shared_seed_is_told_kept_and_never_written_but_to_checkpoints(tmp_path):
    config = small_config(updates=2)
    config.seed = None
    shared = 0xFEDC_BA98_7654_3210_0123_4567_89AB_CDEF
    untrained(config, tmp_path, shared_seed=shared)
    # A resumed run takes it from there.
    resumed = Trainer(config, tmp_path)
    assert resumed._seed == shared
    assert SHARED_SEED in resumed.model.ledger.conditions
    spent = read(tmp_path, "privacy.json")
    assert spent["seed_origin"] == "shared" and not spent["seed_chosen_by_user"]
    assert "publish at most one of them" in spent["warning"]
    assert spent["statement"].startswith(spent["warning"])
    _, metadata = restore_network(tmp_path)
    assert "seed" not in metadata
    for path in tmp_path.rglob("*"):
        if path.is_file() and path.parent.name != "checkpoints":
            data = path.read_bytes()
            assert (
                f"{shared:x}".encode() not in data and str(shared).encode() not in data
            )


def test_a_run_with_a_seed_from_the_operating_system_needs_no_warning(tmp_path):
    config = small_config(updates=2)
    config.seed = None
    untrained(config, tmp_path)
    spent = read(tmp_path, "privacy.json")
    assert spent["warning"] is None and spent["seed_origin"] == "system"
    assert spent["statement"].startswith("Guarantee")


@pytest.mark.parametrize("seed", [-1, 2**128, 2**128 + 1])
def test_a_seed_out_of_range_is_refused_before_anything_is_written(tmp_path, seed):
    """They used to wrap around: minus one became the largest of all."""
    config = small_config()
    config.seed = seed
    with pytest.raises(DPMixError, match="seed must be in") as error:
        Trainer(config, tmp_path / "run")
    assert str(seed) not in str(error.value)
    config.seed = None
    with pytest.raises(DPMixError, match="seed must be in"):
        Trainer(config, tmp_path / "run", shared_seed=seed)
    assert not (tmp_path / "run").exists()


def test_a_run_has_one_seed(tmp_path):
    with pytest.raises(DPMixError, match="Leave out either config.seed or shared_seed"):
        Trainer(small_config(), tmp_path / "run", shared_seed=7)
    assert not (tmp_path / "run").exists()


def test_nothing_private_is_in_the_metrics(finished):
    text = (finished[0] / "metrics.jsonl").read_text()
    assert "loss" not in text and "norm" not in text and "private" not in text


def test_private_metrics_are_labelled_where_asked_for(tmp_path):
    config = small_config(updates=4)
    config.run.private_metrics = True
    Trainer(config, tmp_path).run()
    assert "private_loss" in events(tmp_path)[0]


def test_secrets_are_readable_by_their_owner_alone(finished):
    workdir, _ = finished
    for path in [*(workdir / "checkpoints").iterdir(), workdir / "config.json"]:
        assert path.stat().st_mode & 0o077 == 0
    assert (workdir / "checkpoints").stat().st_mode & 0o077 == 0


def test_a_finished_run_is_not_trained_again(finished):
    workdir, result = finished
    assert Trainer(small_config(), workdir).run() == result


def test_the_network_is_restored_without_the_data(finished):
    workdir, _ = finished
    raw, metadata = restore_network(workdir, weights="raw")
    ema, _ = restore_network(workdir, weights="ema")
    assert metadata["updates"] == 8 and len(metadata["class_names"]) == 10
    assert "seed" not in metadata
    assert np.any(raw.get_weights()[0] != ema.get_weights()[0])


def test_another_config_on_the_same_workdir_is_refused_with_the_difference(finished):
    workdir, _ = finished
    config = small_config(epsilon=4.0)
    config.views.mixed = 0
    with pytest.raises(DPMixError) as error:
        Trainer(config, workdir)
    assert "privacy.epsilon: 8.0 there, 4.0 here" in str(error.value)
    assert "views.mixed: 1 there, 0 here" in str(error.value)
    assert read(workdir, "config.json")["privacy"]["epsilon"] == 8.0


def test_a_secret_seed_is_not_shown_among_the_differences(finished):
    config = small_config()
    config.seed = 987654321
    with pytest.raises(DPMixError, match="seed: a different one") as error:
        Trainer(config, finished[0])
    assert "987654321" not in str(error.value)


def test_a_run_is_not_resumed_on_other_data(tmp_path, monkeypatch):
    interrupted_after(tmp_path, 4)
    monkeypatch.setattr(ExampleSource, "fingerprint", lambda self: "other")
    with pytest.raises(DPMixError, match="training data has changed"):
        Trainer(small_config(), tmp_path)


def test_how_a_run_is_run_may_change(finished):
    config = small_config()
    config.run.checkpoint_every = 5
    Trainer(config, finished[0])


def interrupted_after(workdir, updates):
    """Trains, and dies without a word just before checkpoint number `updates`."""

    class Died(BaseException):
        pass

    trainer = Trainer(small_config(), workdir)
    save = trainer._checkpoint

    def die_or_save():
        if trainer.model.updates >= updates:
            raise Died
        save()

    trainer._checkpoint = die_or_save
    with pytest.raises(Died):
        trainer.run()


def resumes_at(workdir):
    """The update after which the same command goes on."""
    trainer = Trainer(small_config(), workdir)
    trainer.workdir.close()
    return trainer.model.updates


def last_arrays(workdir):
    return checkpoints.load_latest(workdir / "checkpoints")[0]


def test_a_resumed_run_ends_with_the_very_same_weights(finished, tmp_path):
    interrupted_after(tmp_path, 4)
    resumed = Trainer(small_config(), tmp_path)
    assert resumed.model.updates == 2
    result = resumed.run()
    workdir, expected = finished
    assert result == expected
    assert events(tmp_path) == events(workdir)
    for name, array in last_arrays(workdir).items():
        np.testing.assert_array_equal(array, last_arrays(tmp_path)[name], name)


def test_what_was_spent_before_a_crash_stays_on_record(tmp_path):
    interrupted_after(tmp_path, 6)
    assert read(tmp_path, "privacy.json")["updates"] == 6
    resumed = Trainer(small_config(), tmp_path)
    assert resumed.model.updates == 4
    resumed.workdir.write_privacy(resumed.model)
    assert read(tmp_path, "privacy.json")["updates"] == 6


def test_a_broken_newest_checkpoint_falls_back_to_the_one_before(tmp_path, caplog):
    interrupted_after(tmp_path, 6)
    newest = tmp_path / "checkpoints" / "update_000000004.npz"
    data = bytearray(newest.read_bytes())
    weights = checkpoints.load_latest(tmp_path / "checkpoints")[0]["network/0"]
    data[data.find(weights.tobytes()) + 5] ^= 0x01
    newest.write_bytes(data)
    assert resumes_at(tmp_path) == 2
    newest.write_bytes(data[:100])
    assert resumes_at(tmp_path) == 2
    for path in (tmp_path / "checkpoints").iterdir():
        path.write_bytes(b"")
    with pytest.raises(DPMixError, match="Every checkpoint"):
        Trainer(small_config(), tmp_path)


def test_a_broken_checkpoint_is_not_quoted(tmp_path, caplog):
    trainer = Trainer(small_config(), tmp_path)
    trainer._checkpoint()
    (path,) = (tmp_path / "checkpoints").iterdir()
    data = bytearray(path.read_bytes())
    seed = f"{trainer._seed:032x}"
    assert seed.encode() in data
    data[26:28] = (1200).to_bytes(2, "little")  # length of the first array's name
    path.write_bytes(data)
    with pytest.raises(zipfile.BadZipFile, match=seed):  # Python's own message
        checkpoints._load(path)
    with pytest.raises(DPMixError, match="Every checkpoint") as told:
        checkpoints.load_latest(tmp_path / "checkpoints")
    assert "is broken" in caplog.text
    assert seed not in caplog.text and seed not in str(told.value)


def test_a_full_disk_leaves_the_old_checkpoint_and_says_so(tmp_path, monkeypatch):
    trainer = Trainer(small_config(), tmp_path)
    trainer._checkpoint()
    before = {p: p.read_bytes() for p in (tmp_path / "checkpoints").iterdir()}

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    trainer.model.account._next.assign(1)
    with pytest.raises(DPMixError, match="disk is full"):
        trainer._checkpoint()
    after = {p: p.read_bytes() for p in (tmp_path / "checkpoints").iterdir()}
    assert before == after


def test_a_workdir_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DPMixError, match="Cannot write to the workdir"):
        Trainer(small_config(), tmp_path / "file" / "run")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"privacy.noise_multiplier": 1.0}, "exactly one of privacy.epsilon"),
        ({"privacy.expected_batch_size": 2000}, "larger than num_examples"),
        ({"privacy.delta": 2.0}, "delta must be"),
        ({"optimizer.name": "Sgdd"}, "cannot make an optimizer"),
        ({"network.name": "vgg"}, "network must be one of"),
        ({"views.augment": "blur"}, "augment must be one of"),
        ({"data.name": "imagenet"}, "data.name must be one of"),
        ({"run.checkpoint_every": 0}, "run.checkpoint_every"),
    ],
)
def test_mistakes_are_refused_before_any_update(tmp_path, change, words):
    config = small_config()
    config.update_from_flattened_dict(change)
    with pytest.raises(DPMixError, match=words):
        Trainer(config, tmp_path)
    assert not (tmp_path / "privacy.json").exists()
    Trainer(small_config(), tmp_path)  # the corrected command is not refused


def test_spent_budget_without_checkpoints_is_not_spent_again(tmp_path):
    interrupted_after(tmp_path, 4)
    for path in (tmp_path / "checkpoints").iterdir():
        path.unlink()
    with pytest.raises(DPMixError, match="its checkpoints are gone"):
        Trainer(small_config(), tmp_path)


def test_a_workdir_is_held_from_the_moment_it_is_opened(tmp_path):
    first = Trainer(small_config(), tmp_path)
    with pytest.raises(DPMixError, match="Another process is training"):
        Trainer(small_config(), tmp_path)
    first.workdir.close()
    Trainer(small_config(), tmp_path)


def command(workdir, *more):
    return [sys.executable, *train_command(workdir, *more)]


@pytest.mark.slow
def test_a_second_process_on_the_workdir_is_refused_and_sigterm_checkpoints(tmp_path):
    long = command(tmp_path, "--config.privacy.updates=5000")
    with subprocess.Popen(long, stderr=subprocess.PIPE) as first:
        wait_for_checkpoint(tmp_path, first)
        second = subprocess.run(long, capture_output=True, text=True)
        assert second.returncode == 2
        assert "Another process is training" in second.stderr
        first.send_signal(signal.SIGTERM)
        said = first.stderr.read().decode()
        assert first.wait(timeout=300) == 130
        assert "the same command resumes there" in said
    _, metadata = checkpoints.load_latest(tmp_path / "checkpoints")
    assert 0 < metadata["updates"] < 5000
    assert read(tmp_path, "privacy.json")["updates"] == metadata["updates"]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_update_that_takes_minutes_is_abandoned_after_a_signal(tmp_path, number):
    long = command(
        tmp_path,
        "--config.views.base=4000",
        "--config.views.mixed=0",
        "--config.privacy.expected_batch_size=1200",
    )
    with subprocess.Popen(long, stderr=subprocess.PIPE) as process:
        wait_for_checkpoint(tmp_path, process, "")
        time.sleep(15)  # it has been traced by now, or is soon
        process.send_signal(number)
        said = process.stderr.read().decode()
        assert process.wait() == 130, said[-2000:]
    assert "Stopped after update 0" in said  # 1, were it not abandoned
    arrays, metadata = checkpoints.load_latest(tmp_path / "checkpoints")
    assert metadata["updates"] == 0
    assert read(tmp_path, "privacy.json")["updates"] == 0


def wait_for_checkpoint(workdir, process, after="update_000000000.npz"):
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if any(
            path.name > after for path in (workdir / "checkpoints").glob("update_*.npz")
        ):
            return
        time.sleep(0.05)
    raise AssertionError("no checkpoint appeared")


@pytest.mark.slow
def test_killed_at_random_moments_it_ends_with_the_very_same_weights(tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    subprocess.run(command(whole), check=True, capture_output=True)
    random = np.random.default_rng(int.from_bytes(os.urandom(4), "big"))
    for _ in range(2):
        with subprocess.Popen(command(killed), stderr=subprocess.DEVNULL) as process:
            wait_for_checkpoint(killed, process)
            time.sleep(random.uniform(0, 0.5))
            process.kill()
    subprocess.run(command(killed), check=True, capture_output=True)
    assert spending(killed) == spending(whole)
    assert events(killed) == events(whole)
    for name, array in last_arrays(whole).items():
        np.testing.assert_array_equal(array, last_arrays(killed)[name], name)


def test_a_run_that_diverges_stops_and_keeps_the_checkpoint_before(tmp_path):
    config = small_config()
    config.optimizer.learning_rate = 1e38
    trainer = Trainer(config, tmp_path)
    with pytest.raises(DivergedError, match="epsilon = .* spent"):
        trainer.run()
    spent = read(tmp_path, "privacy.json")
    assert 0 < spent["updates"] == trainer.model.updates < 8
    arrays, metadata = checkpoints.load_latest(tmp_path / "checkpoints")
    assert metadata["updates"] < spent["updates"]
    assert all(np.isfinite(array).all() for array in arrays.values())
    assert "NaN" not in (tmp_path / "privacy.json").read_text()
