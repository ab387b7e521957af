"""Tuning inside the guarantee, from the drawn number to the folder that is left."""

import json
import re
import shutil

import numpy as np
import pytest

from dpmix_tf.data import ArraySource, Dataset, PeopleSource
from dpmix_tf.errors import DivergedError, DPMixError
from dpmix_tf.privacy import Ledger
from dpmix_tf.training import default_config, restore_network, tuning
from dpmix_tf.training.evaluation import Score, record_scores
from dpmix_tf.training.tuning import Tuner
from dpmix_tf.training.workdir import recorded_ledger

RATES = {"optimizer.learning_rate": (0.0, 2.0)}


def source(count, seed):
    """Two classes of images: stripes that lie, and stripes that stand."""
    random = np.random.default_rng(seed)
    labels = np.arange(count) % 2
    lying = 150 * (np.arange(8) % 4 < 2)[:, None] * np.ones(8, int)
    stripes = np.stack([lying, lying.T])[labels][..., None]
    images = random.integers(0, 60, (count, 8, 8, 1)) + stripes
    return ArraySource(images.astype(np.uint8), labels)


def dataset(**changes):
    parts = {"train": source(80, 0), "validation": source(60, 1), "test": source(40, 2)}
    return Dataset(**(parts | changes))


def small_config(**privacy):
    config = default_config()
    config.network.update(name="convnet", widths=(8,), groups=4)
    config.views.update(base=1, mixed=0, augment="none")
    config.privacy.update(
        epsilon=16.0, delta=1e-4, expected_batch_size=60, updates=6, clip_norm=1.0
    )
    config.privacy.update(privacy)
    config.ema_decay = 0.5
    config.run.evaluate_every = config.run.checkpoint_every = 3
    return config


@pytest.fixture
def drawn(monkeypatch):
    """Lets a test decide how many trials are drawn, and with which candidates."""

    def decide(*indices):
        def draw(choice, candidates):
            assert choice.trials == 3.0 and candidates == 2
            return list(indices)

        monkeypatch.setattr(tuning, "draw_trials", draw)

    return decide


def make(workdir, choices=RATES, config=None, **settings):
    settings = {"trials": 3.0, "dataset": dataset()} | settings
    return Tuner(config or small_config(), workdir, choices, **settings)


def forced(workdir, *indices, **settings):
    """Tunes with trials that the test decides."""
    tuner = make(workdir, **settings)
    about = tuner._about() | {"secret": True, "trials": list(indices)}
    tuning._write_secret(workdir / "tuning.json", about)
    return tuner.run()


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    """A workdir in which three trials ran, the second with a rate that learns."""
    workdir = tmp_path_factory.mktemp("tuned")
    return workdir, forced(workdir, 0, 1, 0)


def test_the_best_trial_is_published_and_nothing_else_is_left(tuned):
    workdir, result = tuned
    assert result.values == {"optimizer.learning_rate": 2.0}
    assert result.folder == workdir / "best" and result.score > 0.8
    assert result.final["test_accuracy_ema"] > 0.8
    # Of the others their noised scores, secret; no weights.
    left = [name for name in files(workdir / "trials") if not name.startswith(".")]
    assert left == ["0001.json", "0002.json", "0003.json"]
    for path in (*(workdir / "trials").glob("*.json"), workdir / "tuning.json"):
        assert path.stat().st_mode & 0o077 == 0
    assert workdir.stat().st_mode & 0o077 == 0
    network, metadata = restore_network(workdir / "best")
    assert metadata["updates"] == 6 and network.count_params() > 0


def contents(best):
    """Names and contents of what may be told of a run, but for its random numbers."""
    found = {}
    for name in files(best):
        # TensorFlow names a file by time, host, process and its writers before: of the
        # trials' there are none, see below.
        shown = re.sub(r"\.tfevents\..*", ".tfevents", name)
        text = ""
        if name.endswith(".json") or name.endswith(".jsonl"):
            text = (best / name).read_text().replace(str(best.parent), "")
            text = re.sub(r"[0-9a-f]{16}|-?\d+\.\d+(e[+-]\d+)?", "*", text)
        found[shown] = text
    return found


def test_nothing_in_best_tells_how_many_trials_there_were(tuned, tmp_path):
    """Nor which of them it was."""
    forced(tmp_path, 1)
    alone = contents(tmp_path / "best")
    assert alone == contents(tuned[0] / "best")
    assert sum("tfevents" in name for name in files(tuned[0] / "best")) == 1
    about = json.loads((tuned[0] / "best" / "tuning.json").read_text())
    assert about["trials"] == 3.0 and about["trials_distribution"] == "poisson"
    assert about["validation_records"] == 60
    # The files of a trial are older than those of best.
    dates = [path.stat().st_mtime for path in (tuned[0] / "best").rglob("*")]
    last_score = (tuned[0] / "trials" / "0003.json").stat().st_mtime
    assert min(dates) >= last_score


def test_a_trial_writes_no_curves(tmp_path, monkeypatch):
    monkeypatch.setattr(
        tuning.Tuner, "_publish", lambda self, drawn: files(self._folder(1))
    )
    written = forced(tmp_path, 1)
    assert not any("tensorboard/" in name or "metrics" in name for name in written)


def test_epsilon_covers_the_choice(tuned):
    workdir, _ = tuned
    spent = json.loads((workdir / "best" / "privacy.json").read_text())
    assert 15.98 < spent["epsilon"] <= 16.0 and spent["accountant"] == "rdp"
    assert "whose number was drawn from a Poisson distribution" in spent["statement"]
    ledger = recorded_ledger(workdir / "best")
    (entry,) = ledger.entries
    assert entry.plan.trials == 3.0 and entry.plan.score_noise > 0
    alone = Ledger.planned(
        type(entry.plan)(**entry.plan.to_dict() | {"trials": 1.0, "score_noise": None})
    )
    assert alone.epsilon(1e-4, "rdp") < 14
    assert spent["seed_origin"] == "system"


def test_no_accuracy_on_validation_records_is_written_without_noise(tuned):
    workdir, _ = tuned
    text = (workdir / "best" / "metrics.jsonl").read_text()
    assert "validation_accuracy" not in text and "test_accuracy" in text


def test_a_finished_tuning_is_not_repeated(tuned, monkeypatch):
    workdir, result = tuned
    before = files(workdir)
    monkeypatch.setattr(tuning, "draw_trials", lambda *_: pytest.fail("drawn"))
    again = make(workdir).run()
    assert again == result and files(workdir) == before


@pytest.mark.parametrize("stop", ["in a trial", "after a score", "before best is done"])
def test_whatever_stops_it_the_same_call_resumes(tmp_path, drawn, monkeypatch, stop):
    drawn(0, 1, 0)
    calls = []

    class Stopping(tuning.Trainer):
        def train_and_score(self, source):
            calls.append(1)
            if stop == "in a trial" and len(calls) == 2:
                raise KeyboardInterrupt
            return super().train_and_score(source)

        def run(self):
            calls.append("best")
            if stop == "before best is done" and calls.count("best") == 1:
                raise KeyboardInterrupt
            return super().run()

    monkeypatch.setattr(tuning, "Trainer", Stopping)
    if stop == "after a score":
        rmtree, removed = shutil.rmtree, []

        def killed(folder, **settings):
            removed.append(folder)
            if len(removed) == 1:
                raise KeyboardInterrupt
            rmtree(folder, **settings)

        monkeypatch.setattr(tuning.shutil, "rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path).run()
    scores = {
        path.name: path.read_text() for path in (tmp_path / "trials").glob("*.json")
    }
    drawn(1, 1, 1, 1, 1)  # must not be drawn again
    result = make(tmp_path).run()
    files_of_scores = sorted((tmp_path / "trials").glob("*.json"))
    kept = [json.loads(path.read_text())["score"] for path in files_of_scores]
    rate = RATES["optimizer.learning_rate"][[0, 1, 0][int(np.argmax(kept))]]
    assert result.values == {"optimizer.learning_rate": rate}
    assert json.loads((tmp_path / "tuning.json").read_text())["trials"] == [0, 1, 0]
    for name, text in scores.items():  # nor scored again
        assert (tmp_path / "trials" / name).read_text() == text
    assert len(kept) == 3


def test_drawing_no_trial_is_an_outcome(tmp_path, drawn):
    drawn()
    with pytest.raises(DPMixError, match="No trial was drawn.* probability 0.05"):
        make(tmp_path).run()
    drawn(0, 1)
    with pytest.raises(DPMixError, match="No trial was drawn"):
        make(tmp_path).run()
    assert not (tmp_path / "trials").exists()


def test_trials_that_diverge_lose(tmp_path, drawn):
    drawn(1, 0, 1)
    choices = {"optimizer.learning_rate": (0.5, 1e38)}
    result = make(tmp_path / "a", choices).run()
    assert result.values == {"optimizer.learning_rate": 0.5}
    drawn(1, 1)
    with pytest.raises(DivergedError, match="Every trial diverged"):
        make(tmp_path / "b", choices).run()


def test_public_validation_has_no_noise_and_says_so(tmp_path, drawn):
    drawn(1)
    result = make(tmp_path, public_validation=True).run()
    spent = json.loads((tmp_path / "best" / "privacy.json").read_text())
    assert "which are taken as public" in spent["statement"]
    assert result.score * 60 == pytest.approx(round(result.score * 60), abs=1e-9)
    noised = make(tmp_path / "private", dataset=dataset()).run()
    assert (
        noised.score in (0.0, 1.0)
        or abs(noised.score * 60 - round(noised.score * 60)) > 1e-9
    )


@pytest.mark.parametrize(
    "choices,settings,privacy,message",
    [
        ({"optimizer.learning_rate": (1.0,)}, {}, {}, "two values of a setting"),
        ({}, {}, {}, "two values of a setting"),
        ({"optimizer.learning_rate": ()}, {}, {}, "no value to try"),
        ({"data.name": ("a", "b")}, {}, {}, "data.name cannot be tuned"),
        ({"run.chunk_size": (1, 2)}, {}, {}, "run.chunk_size cannot be tuned"),
        (
            {"privacy.updates": (5, 6)},
            {},
            {},
            "cannot be tuned: .* privacy anything but",
        ),
        (
            {"privacy.epsilon": (4.0, 8.0)},
            {},
            {},
            "cannot be tuned: .* privacy anything but",
        ),
        ({"views.wrong": (1, 2)}, {}, {}, "A candidate sets views.wrong = 1"),
        ({"views.base": (1, 0)}, {}, {}, "base"),
        ({"network.widths": ((8,), (-8,))}, {}, {}, "widths"),
        (RATES, {"trials": 1.0}, {}, "trials must be above 1"),
        (RATES, {"distribution": "fixed"}, {}, "distribution"),
        (RATES, {"dataset": dataset(validation=None)}, {}, "there are none"),
        (RATES, {}, {"epsilon": None, "noise_multiplier": 1.0}, "privacy.epsilon"),
        (RATES, {}, {"class_counts_noise": 3.0}, "class_counts_noise"),
    ],
)
def test_what_cannot_be_tuned_is_refused_before_anything_is_trained(
    tmp_path, choices, settings, privacy, message
):
    with pytest.raises(DPMixError, match=message):
        make(tmp_path, choices, small_config(**privacy), **settings).run()
    assert not (tmp_path / "trials").exists()
    assert not (tmp_path / "tuning.json").exists()


@pytest.mark.parametrize("part", ["train", "validation"])
def test_other_data_are_refused(tuned, part):
    count = {"train": 80, "validation": 60}[part]
    with pytest.raises(DPMixError, match="data: .* there"):
        make(tuned[0], dataset=dataset(**{part: source(count, 9)}))


def test_what_would_be_told_without_noise_is_refused(tmp_path):
    config = small_config()
    config.run.private_metrics = True
    with pytest.raises(DPMixError, match="run.private_metrics"):
        make(tmp_path, config=config)


def test_people_are_to_be_known_before_anything_is_trained(tmp_path):
    people = PeopleSource(source(80, 0), np.arange(80) // 2)
    config = small_config(expected_batch_size=20)
    with pytest.raises(DPMixError, match="not known whose"):
        make(tmp_path, config=config, dataset=dataset(train=people))
    assert not list(tmp_path.iterdir())


def test_features_are_not_kept_in_the_folder_of_the_best(tmp_path):
    tuner = make(tmp_path)
    assert tuner._config.run.cache_dir == str(tmp_path / "cache")


def test_a_run_is_a_trial_only_for_the_tuner(tmp_path):
    config = small_config(trials=3.0, accountant="rdp")
    with pytest.raises(DPMixError, match="bin/tune.py"):
        tuning.Trainer(config, tmp_path, dataset=dataset())


def test_a_chosen_seed_is_refused(tmp_path):
    config = small_config()
    config.seed = 3
    with pytest.raises(DPMixError, match="Leave out config.seed"):
        make(tmp_path, config=config)


def test_a_folder_of_another_tuning_is_refused(tuned):
    workdir, _ = tuned
    with pytest.raises(DPMixError, match="choices: .* there"):
        make(workdir, {"optimizer.learning_rate": (0.0, 3.0)})
    with pytest.raises(DPMixError, match="privacy.trials: 3.0 there, 4.0 here"):
        make(workdir, trials=4.0)
    holder = make(workdir)
    with pytest.raises(DPMixError, match="Another process is tuning"):
        make(workdir)
    holder.run()


def test_records_are_scored_as_wholes():
    logits = np.array([[2.0, 1.0], [0.0, 1.0], [3.0, 0.0], [0.0, 1.0]], np.float32)
    labels = np.array([0, 0, 0, 1])
    score = Score("accuracy", 0.75, [], logits, labels)
    images = ArraySource(np.zeros((4, 8, 8, 1), np.uint8), labels)
    assert record_scores(score, images, "example").tolist() == [1, 0, 1, 1]
    people = PeopleSource(images, ["b", "a", "b", "a"])
    assert record_scores(score, people, "person").tolist() == [0.5, 1.0]
    images.people = np.array(["b", "a", "b", "a"])
    assert record_scores(score, images, "person").tolist() == [0.5, 1.0]
    images.people = None
    with pytest.raises(DPMixError, match="not known whose"):
        record_scores(score, images, "person")


def test_several_labels_are_scored_by_brier_s_rule():
    logits = np.array([[0.0, 50.0], [50.0, -50.0], [0.0, 0.0]], np.float32)
    labels = np.array([[1, np.nan], [0, 0], [np.nan, np.nan]], np.float32)
    images = ArraySource(np.zeros((3, 8, 8, 1), np.uint8), np.array([0, 1, 0]))
    score = Score("auroc", None, [], logits, labels)
    found = record_scores(score, images, "example")
    np.testing.assert_allclose(found, [0.75, 0.5, 1.0])
    broken = Score("auroc", None, [], np.full((3, 2), np.nan, np.float32), labels)
    lost = record_scores(broken, images, "example")
    assert np.isnan(lost[:2]).all()  # which a sum counts as 0
