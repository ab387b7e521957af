"""Test accuracy with noise: nothing un-noised is written, and no noise serves twice."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from dpmix_tf.data import ArraySource, Dataset, PeopleSource
from dpmix_tf.errors import DPMixError
from dpmix_tf.privacy import randomness
from dpmix_tf.privacy.counts import counts_plan
from dpmix_tf.privacy.ledger import CHOSEN_SEED, SHARED, SYSTEM, Ledger
from dpmix_tf.training import Trainer, default_config
from dpmix_tf.training.evaluation import Score
from dpmix_tf.training.report import (
    describe_release,
    noised_accuracy,
    plan_of_report,
)
from dpmix_tf.training.workdir import differences
from tests.conftest import ROOT

EVERY_FIGURE = ("test_accuracy", "test_accuracy_ema", "test_figures_ema")


def config_of(noise=4.0):
    config = default_config()
    config.network.update(name="convnet", widths=(8,), groups=4)
    config.views.update(base=2, mixed=0, augment="none")
    config.privacy.update(
        epsilon=8.0, delta=1e-4, expected_batch_size=20, updates=2, accountant="rdp"
    )
    config.report.noise = noise
    config.run.update(evaluate_every=1, checkpoint_every=1)
    return config


def score_of(right, labels=None):
    """A score in which some of n images, of two classes, are classified correctly."""
    labels = np.zeros(len(right), int) if labels is None else labels
    found = np.where(right, labels, 1 - labels)
    return Score("accuracy", 0.0, [], np.eye(2, dtype=np.float32)[found], labels)


def source_of(count, people=None):
    images = np.zeros((count, 4, 4, 1), np.uint8)
    source = ArraySource(images, np.arange(count) % 2, ["a", "b"])
    source.people = None if people is None else np.asarray(people)
    return source


@pytest.fixture(scope="module")
def noised(tmp_path_factory):
    """The workdir of a finished run with noise, its trainer, and its final event."""
    workdir = tmp_path_factory.mktemp("noised")
    trainer = Trainer(config_of(), workdir)
    return workdir, trainer, trainer.run()


def test_no_figure_without_noise_is_written(noised):
    workdir, trainer, final = noised
    tested = {name for name in final if name.startswith("test")}
    assert tested == {"test_accuracy_noised"}
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    for event in map(json.loads, lines):
        assert not [
            name
            for name in event
            if name.startswith("test") and name != "test_accuracy_noised"
        ]
    tags = {
        value.tag
        for path in (workdir / "tensorboard").rglob("*tfevents*")
        for event in tf.compat.v1.train.summary_iterator(str(path))
        for value in event.summary.value
    }
    assert {tag for tag in tags if tag.startswith("test")} == {"test/accuracy_noised"}
    assert any(tag.startswith("validation/") for tag in tags)
    with trainer.model.average.applied():
        score = trainer._score(trainer.dataset.test)
    exact = score.overall
    for name in ("metrics.jsonl", "privacy.json"):
        assert f"{exact:.6f}" not in (workdir / name).read_text()
    moved = (final["test_accuracy_noised"] - exact) * len(trainer.dataset.test)
    assert 1e-6 < abs(moved) < 6 * 4.0  # by noise, and by no more


@pytest.mark.slow
def test_evaluating_such_a_run_says_that_no_guarantee_covers_it(noised):
    workdir, _, _ = noised

    def evaluate(split):
        command = [sys.executable, str(ROOT / "bin" / "evaluate.py")]
        command += [f"--workdir={workdir}", f"--split={split}"]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        return subprocess.run(
            command, env=environment, check=True, capture_output=True, text=True
        )

    said = evaluate("test")
    assert "that guarantee does not cover them" in said.stderr
    assert "does not cover them" in json.loads(said.stdout)["warning"]
    assert "warning" not in json.loads(evaluate("validation").stdout)


def test_what_it_costs_the_test_records_is_stated_apart(noised):
    workdir, trainer, final = noised
    spent = json.loads((workdir / "privacy.json").read_text())
    release = spent["test_release"]
    count = len(trainer.dataset.test)
    assert (release["noise"], release["records"]) == (4.0, count)
    assert (release["record"], release["delta"]) == ("example", 1e-4)
    alone = counts_plan(count, 4.0, 1e-4, accountant="rdp").epsilon()
    assert release["epsilon"] == alone > 0
    assert spent["epsilon"] == final["epsilon"] == trainer.plan.epsilon()
    assert len(spent["ledger"]) == 1


def test_a_run_without_it_states_no_release(tmp_path):
    final = Trainer(config_of(noise=None), tmp_path).run()
    assert set(EVERY_FIGURE) <= final.keys()
    spent = json.loads((tmp_path / "privacy.json").read_text())
    assert spent["test_release"] is None and "test_accuracy_noised" not in final


def test_a_run_that_resumes_repeats_its_release(noised, tmp_path):
    """Killed between the last checkpoint and the final event; or even after it."""
    workdir, _, final = noised
    again = Trainer(config_of(), workdir)
    assert again.run() == final
    path = workdir / "metrics.jsonl"
    whole = path.read_text()
    path.write_text("".join(line + "\n" for line in whole.splitlines()[:-1]))
    try:
        assert Trainer(config_of(), workdir).run() == final
    finally:
        path.write_text(whole)


def test_the_record_of_a_release_is_never_lost(noised):
    workdir, trainer, _ = noised
    before = json.loads((workdir / "privacy.json").read_text())
    again = Trainer(config_of(), workdir)
    again.workdir.write_privacy(again.model)
    again._close()
    after = json.loads((workdir / "privacy.json").read_text())
    assert after["test_release"] == before["test_release"] is not None


def test_noise_has_the_stated_deviation_and_depends_on_the_seed():
    plan, right = counts_plan(1_000, 20.0, 1e-4), np.arange(1_000) % 2 == 0
    found = [
        noised_accuracy(score_of(right), source_of(1_000), plan, seed)
        for seed in range(400)
    ]
    moved = np.array([one["test_accuracy_noised"] for one in found]) * 1_000 - 500
    assert abs(moved.mean()) < 4 * 20 / 20 and 18 < moved.std() < 22
    assert len(set(moved)) == 400


def test_no_noise_serves_two_results_or_two_purposes():
    """Else the difference of two, or of this and of class counts, would have none."""
    plan, source = counts_plan(100, 5.0, 1e-4), source_of(100)

    def noise_of(right):
        found = noised_accuracy(score_of(right), source, plan, 7)
        return found["test_accuracy_noised"] * 100 - right.sum()

    right = np.arange(100) < 50
    other = right.copy()
    other[0] = False
    assert noise_of(right) == noise_of(right)
    assert abs(noise_of(right) - noise_of(other)) > 1e-6
    for purpose in ("counts", "noise", "test accuracy"):
        used = 5.0 * randomness.generator(7, purpose).normal()
        assert abs(noise_of(right) - used) > 1e-6


def test_the_result_is_an_accuracy_whatever_the_noise():
    plan = counts_plan(4, 1e6, 1e-4)
    found = {
        noised_accuracy(score_of(np.ones(4, bool)), source_of(4), plan, seed)[
            "test_accuracy_noised"
        ]
        for seed in range(20)
    }
    assert found == {0.0, 1.0}


@pytest.mark.parametrize("as_records", [True, False])
def test_a_person_moves_the_sum_by_at_most_one(as_records):
    """However many images they have; here without noise to speak of."""
    owners = np.array(["ann"] * 90 + ["bob"] * 6 + ["cy"] * 4)
    test = source_of(100, owners)
    if as_records:
        test = PeopleSource(test, owners)
    plan = counts_plan(3, 1e-9, 1e-4, record="person")

    def total(right):
        found = noised_accuracy(score_of(right), test, plan, 1)
        return 3 * found["test_accuracy_noised"]

    right = np.arange(100) % 2 == 0
    assert total(right) == pytest.approx(1.5, abs=1e-6)
    assert total(right & (owners != "ann")) == pytest.approx(1.0, abs=1e-6)
    assert total(right | (owners == "ann")) == pytest.approx(2.0, abs=1e-6)


def dataset_of(train, test):
    return Dataset(train=train, validation=None, test=test)


def test_records_are_people_where_people_are_protected():
    people = PeopleSource(source_of(20), np.arange(20) // 4)
    test = source_of(12, np.arange(12) // 3)
    plan = plan_of_report(config_of(), dataset_of(people, test), SYSTEM)
    assert (plan.record, plan.num_examples, plan.updates) == ("person", 4, 1)
    assert plan.sampling_probability == 1
    # Images are the records of a training on images, whoever is known to be in them.
    plan = plan_of_report(config_of(), dataset_of(source_of(20), test), SYSTEM)
    assert (plan.record, plan.num_examples) == ("example", 12)


def test_refused_before_anything_is_trained(tmp_path, digits):
    people = PeopleSource(source_of(20), np.arange(20) // 4)
    with pytest.raises(DPMixError, match="not known whose each test image is"):
        plan_of_report(config_of(), dataset_of(people, source_of(9)), SYSTEM)
    with pytest.raises(DPMixError, match="a seed of the run's own"):
        plan_of_report(config_of(), dataset_of(people, people), SHARED)
    with pytest.raises(DPMixError, match="must be above 0"):
        Trainer(config_of(noise=0.0), tmp_path / "a")
    several = source_of(4)
    several.task = "multi_label"
    with pytest.raises(DPMixError, match="these images have several"):
        plan_of_report(config_of(), dataset_of(several, several), SYSTEM)
    config = config_of()
    config.run.test = False
    assert plan_of_report(config, dataset_of(several, several), SYSTEM) is None


def test_a_known_seed_leaves_no_epsilon():
    plan = counts_plan(100, 5.0, 1e-4)
    secret, chosen = Ledger.planned(plan), Ledger.planned(plan, 1, [CHOSEN_SEED])
    assert describe_release(plan, secret)["epsilon"] > 0
    assert describe_release(plan, chosen)["epsilon"] is None


def test_a_run_from_before_resumes_and_its_card_may_change():
    mine = config_of(noise=None).to_dict()
    older = {key: mine[key] for key in mine if key not in ("report", "card")}
    assert differences(older, mine) == []
    mine["card"]["curator"] = "A hospital"
    assert differences(older, mine) == []
    mine["report"]["noise"] = 3.0
    assert differences(older, mine) == ["report.noise: None there, 3.0 here"]
