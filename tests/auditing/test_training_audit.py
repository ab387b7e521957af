import json
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from dpmix_tf import auditing
from dpmix_tf.auditing import canaries, training_audit
from dpmix_tf.data import ArraySource
from dpmix_tf.errors import DPMixError
from dpmix_tf.privacy.mechanism import GaussianMechanism
from dpmix_tf.training import Trainer, default_config
from tests.conftest import ROOT


def short_config(**privacy):
    config = default_config()
    config.network.update(name="convnet", widths=(8,), groups=4)
    config.views.base, config.views.mixed, config.views.padding = 2, 1, 1
    config.privacy.update(
        epsilon=3.0, delta=1e-4, expected_batch_size=500, updates=5, accountant="pld"
    )
    config.privacy.update(privacy)
    return config


def test_canaries_follow_the_examples(digits):
    source = ArraySource(*digits.train.read(np.arange(5)))
    images = np.full((2, 8, 8, 1), 7, np.uint8)
    joined = canaries.CanarySource(source, images, np.array([3, 4]), 2)
    assert len(joined) == 9
    read, labels = joined.read(np.array([8, 1, 5, 6]))
    np.testing.assert_array_equal(read[1], source.read(np.array([1]))[0][0])
    assert (read[2:] == 7).all() and (read[0] == 0).all()
    assert labels.tolist()[2:] == [3, 4]


def canary_model(images, gradients, noise=1e-6, microbatch=None):
    config = short_config(epsilon=None, noise_multiplier=noise)
    if microbatch is not None:
        config.views.base, config.views.mixed = 1, 0
        config.views.microbatch = microbatch
    experiment = training_audit._Experiment(config, images, gradients, seed=3)
    return experiment, experiment.model


@pytest.mark.parametrize("microbatch, sensitivity", [(None, 1.0), (8, 2.0)])
def test_gradient_canaries_use_the_sensitivity_and_are_dropped_by_their_coins(
    microbatch, sensitivity
):
    experiment, model = canary_model(0, 200, microbatch=microbatch)
    assert model.plan.sensitivity == sensitivity
    first = len(experiment.dataset.train)
    included = np.arange(200) % 4 == 0
    model.step.include(included)
    ids = np.arange(first, first + 200)
    images, labels = experiment.source.read(ids)
    total = model.clipped_gradient_sum(images, labels, ids=ids)
    flat = np.concatenate([part.numpy().ravel() for part in total])
    expected = np.zeros_like(flat)
    expected[model.step._places.numpy()[included]] = sensitivity * model.plan.clip_norm
    np.testing.assert_allclose(flat, expected, atol=1e-6)
    # What is heard of them, nearly without noise, is one or nothing.
    model.step._without_canaries = tf.zeros_like(flat)
    model.step._hear([part / model.plan.expected_batch_size for part in total])
    np.testing.assert_array_equal(model.step.scores > 0, included)


def test_the_plan_audited_costs_what_is_claimed():
    experiment, model = canary_model(10, 300, noise=1.5)
    assert model.plan.num_examples == len(experiment.source)
    assert model.plan.epsilon() == pytest.approx(experiment.claimed.epsilon())


def test_a_run_that_keeps_its_plan_is_not_refuted():
    audit = auditing.audit_one_run(
        short_config(), image_canaries=20, gradient_canaries=500, seed=1
    )
    assert not audit.refuted and audit.verdict().startswith("Not refuted")
    assert audit.epsilon < audit.claimed[0] <= 3.0
    # The attack is no toy: it finds canaries.
    assert audit.rocs["white box, gradient canaries"].auc > 0.6
    assert audit.epsilon > 0.2


def test_a_run_without_noise_is_refuted(monkeypatch):
    monkeypatch.setattr(
        GaussianMechanism,
        "noisy_mean",
        lambda self, total, update: [t / self._expected_batch_size for t in total],
    )
    audit = auditing.audit_one_run(
        short_config(), image_canaries=0, gradient_canaries=500, seed=1
    )
    assert audit.refuted and audit.verdict().startswith("REFUTED")


@pytest.mark.slow
def test_many_short_runs(monkeypatch):
    config = short_config(updates=2, expected_batch_size=600, epsilon=6.0)
    audit = auditing.audit_many_runs(config, runs=40, seed=1)
    assert set(audit.rocs) == {
        "black box, an image canary",
        "white box, a gradient canary",
    }
    assert not audit.refuted
    assert audit.rocs["white box, a gradient canary"].auc > 0.7


def test_runs_start_again_at_the_same_weights_with_other_noise():
    experiment, model = canary_model(1, 1, noise=1.0)
    state = [variable.numpy() for variable in training_audit._all(model.state())]
    ends = []
    for seed in (1, 1, 2):
        training_audit._start_again(experiment, state, seed)
        experiment.run(np.array([True, True]), seed)
        ends.append([v.numpy() for v in model.network.trainable_variables])
    for one, same, other in zip(*ends, strict=True):
        np.testing.assert_array_equal(one, same)
        assert np.any(one != other)


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"gradient_canaries": 10**6}, "gradient_canaries must be at most"),
        ({"image_canaries": 10**4}, "image_canaries must be at most"),
        ({"image_canaries": 0, "gradient_canaries": 0}, "no canaries"),
    ],
)
def test_what_cannot_be_audited_is_refused(settings, words):
    config = short_config(updates=1, epsilon=None, noise_multiplier=1.0)
    with pytest.raises(DPMixError, match=words):
        auditing.audit_one_run(config, **settings)


def test_a_plan_without_noise_is_not_audited():
    config = short_config(epsilon=None, noise_multiplier=0.0)
    with pytest.raises(DPMixError, match="claims nothing"):
        auditing.audit_one_run(config)


@pytest.mark.slow
def test_the_command_draws_writes_and_attacks_a_finished_run(tmp_path):
    config = short_config()
    config.seed = 3  # of twenty runs, one lies outside of its interval
    Trainer(config, tmp_path / "run").run()
    done = subprocess.run(
        [
            sys.executable,
            ROOT / "bin" / "audit.py",
            "--config=configs/digits.py",
            "--config.privacy.updates=3",
            "--config.views.base=2",
            "--config.views.mixed=1",
            "--gradient_canaries=500",
            "--image_canaries=20",
            f"--trained={tmp_path / 'run'}",
            f"--workdir={tmp_path / 'audit'}",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads((tmp_path / "audit" / "audit.json").read_text())
    assert result["training"]["verdict"] in done.stdout
    assert result["training"]["refuted"] is False
    # Nothing is memorised in five noisy updates.
    for attack in result["membership"].values():
        assert 0.4 < attack["auc"] < 0.6
        assert attack["auc_interval"][0] < 0.5 < attack["auc_interval"][1]
    picture = (tmp_path / "audit" / "roc.png").read_bytes()
    assert picture.startswith(b"\x89PNG") and len(picture) > 10_000
