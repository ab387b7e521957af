import dataclasses
import json
import math

import pytest

from dpmix_tf.errors import DPMixError
from dpmix_tf.privacy import Ledger, PrivacyPlan
from dpmix_tf.privacy.plan import round_down, round_up
from dpmix_tf.privacy.statement import state_guarantee

GOOD = dict(
    noise_multiplier=2.0,
    delta=1e-5,
    num_examples=1000,
    expected_batch_size=100,
    updates=10,
    accountant="rdp",
)


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("delta", 0.0, "delta must be"),
        ("delta", 1.0, "delta must be"),
        ("delta", float("nan"), "delta must be"),
        ("noise_multiplier", -1.0, "noise_multiplier must be"),
        ("num_examples", 0, "num_examples must be"),
        ("num_examples", 10.5, "num_examples must be"),
        ("expected_batch_size", 0, "expected_batch_size must be"),
        ("expected_batch_size", 1001, "larger than num_examples"),
        ("updates", 0, "updates must be"),
        ("updates", 8.0, "updates must be"),
        ("updates", "10", "updates must be"),
        ("clip_norm", 0.0, "clip_norm must be"),
        ("accountant", "moments", "accountant must be one of"),
    ],
)
def test_values_out_of_range_are_refused_by_name(field, value, words):
    with pytest.raises(DPMixError, match=words):
        PrivacyPlan(**{**GOOD, field: value})


@pytest.mark.parametrize("epsilon", [0.0, -1.0, float("inf"), float("nan")])
def test_epsilon_out_of_range_is_refused(epsilon):
    settings = {key: GOOD[key] for key in GOOD if key != "noise_multiplier"}
    with pytest.raises(DPMixError, match="epsilon must be"):
        PrivacyPlan.for_epsilon(epsilon=epsilon, **settings)


def stated(plan, updates=None):
    return state_guarantee(Ledger.planned(plan, updates), plan)


def test_delta_as_large_as_one_example_in_n_is_warned_about():
    with pytest.warns(UserWarning, match="not below 1/num_examples"):
        PrivacyPlan(**{**GOOD, "delta": 1e-3})


def test_a_plan_cannot_be_changed():
    plan = PrivacyPlan(**GOOD)
    with pytest.raises(dataclasses.FrozenInstanceError):
        plan.noise_multiplier = 0.1


def test_sampling_probability_is_the_expected_share():
    assert PrivacyPlan(**GOOD).sampling_probability == 0.1


def test_a_plan_survives_json():
    plan = PrivacyPlan(**GOOD)
    assert PrivacyPlan(**json.loads(json.dumps(plan.to_dict()))) == plan


def test_the_statement_says_guarantee_adjacency_assumptions_and_limits():
    plan = PrivacyPlan(**GOOD)
    text = stated(plan, 4)
    assert f"after {4} updates" in text
    assert "adding or removing one example" in text
    assert "independently with probability 0.1" in text
    assert "hyperparameters" in text and "validation accuracy" in text
    assert "own Poisson sampler" in text
    assert "number and names of classes" in text


def test_an_epsilon_that_cannot_be_computed_is_no_guarantee():
    plan = PrivacyPlan(
        **{**GOOD, "accountant": "pld", "delta": 1e-18, "noise_multiplier": 1.0}
    )
    assert plan.epsilon() == float("inf")
    assert "NO stated guarantee" in stated(plan)


def test_a_lower_bound_is_never_rounded_up():
    assert round_down(1.2349) == "1.234" and round_up(1.2341) == "1.235"
    assert round_down(math.inf) == round_up(math.inf) == "inf"


def test_the_statement_never_rounds_epsilon_down():
    plan = PrivacyPlan(**GOOD)
    shown = float(stated(plan).split("epsilon = ")[1].split(",")[0])
    assert plan.epsilon() <= shown <= plan.epsilon() + 1e-3
