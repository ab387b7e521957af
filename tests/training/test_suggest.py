"""Suggested settings: the rules, against oracles and against the reports."""

import importlib
import importlib.util
import re

import numpy as np
import pytest

from dpmix_tf.errors import DPMixError
from dpmix_tf.privacy import PrivacyPlan
from dpmix_tf.training import suggest
from tests.conftest import ROOT

GIVEN = dict(num_examples=50_000, epsilon=3.0, network="scattering", minutes=60.0)


def values(**changes):
    return {each.field: each.value for each in suggest.suggest(**GIVEN | changes)}


@pytest.mark.parametrize(
    ("examples", "delta"),
    [(1, 0.1), (9, 1e-2), (10, 1e-2), (1437, 1e-5), (10**5, 1e-6)],
)
def test_delta_is_the_largest_power_of_ten_that_publishes_nobody(examples, delta):
    assert suggest.largest_delta(examples) == delta
    assert delta * examples <= 0.1 < 10 * delta * examples * (1 + 1e-9)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize(("updates", "clip_norm"), [(200, 1.0), (800, 0.1)])
def test_the_rate_lets_noise_alone_move_a_logit_by_one(momentum, updates, clip_norm):
    """By walking: SGD with momentum on nothing but the noise of the mean gradient."""
    plan = PrivacyPlan(
        num_examples=1000,
        expected_batch_size=100,
        updates=updates,
        noise_multiplier=3.0,
        delta=1e-5,
        clip_norm=clip_norm,
    )
    random = np.random.default_rng(0)
    features = random.normal(size=50)
    length = float(np.linalg.norm(features))
    rate = suggest.linear_rate(plan, features=length, momentum=momentum)
    weights = velocity = np.zeros((400, 50))
    for _ in range(updates):
        noise = random.normal(scale=3.0 * clip_norm, size=weights.shape) / 100
        velocity = momentum * velocity - rate * noise
        weights = weights + velocity
    moved = np.std(weights @ features)
    assert moved == pytest.approx(1.0, abs=0.15)


def test_the_rate_is_nearly_linear_in_epsilon_and_leaves_the_schedule_alone():
    rates = {
        e: values(epsilon=e)["optimizer"]["learning_rate"] for e in (1.0, 2.0, 8.0)
    }
    assert 1.7 < rates[2.0] / rates[1.0] < 2.1 and 5 < rates[8.0] / rates[1.0] < 8.5
    one, other = values(epsilon=1.0), values(epsilon=8.0)
    for field in ("privacy.updates", "privacy.expected_batch_size", "privacy.delta"):
        assert one[field] == other[field]


@pytest.mark.slow
def test_the_tried_rate_nearest_to_the_rule_is_within_a_point_of_the_best(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    suggested = importlib.import_module("suggested")
    rows = [row for report in suggested.REPORTS for row in suggested.trials(report)]
    from_zero = [row for row in rows if not row[0].endswith("_warm")]
    assert len(rows) == 12 + 24 and len(from_zero) == 12 + 18
    for arm, epsilon, rate, nearest, best, accuracies in from_zero:
        assert accuracies[best] - accuracies[nearest] < 1.0, (arm, epsilon, rate)


def test_less_time_means_fewer_views_then_fewer_updates_then_a_refusal():
    settings = dict(network="convnet", num_examples=1000, image_size=32)
    speed = dict(views_per_second=1000.0)  # 60,000 a minute; 18,000 for K = 1
    enough = values(**settings, **speed, minutes=34 * 0.3)
    assert (enough["views.base"], enough["views.mixed"]) == (16, 18)
    less = values(**settings, **speed, minutes=33 * 0.3)
    assert (less["views.base"], less["views.mixed"]) == (16, 0)
    one = values(**settings, **speed, minutes=0.3)
    assert (one["views.base"], one["privacy.updates"]) == (1, 100)
    assert one["views.augment"] == "none"
    half = values(**settings, **speed, minutes=0.15)
    assert (half["views.base"], half["privacy.updates"]) == (1, 50)
    with pytest.raises(DPMixError, match="0.1 minutes at least"):
        values(**settings, **speed, minutes=0.05)
    assert values(**settings, **speed, minutes=0.1)["privacy.updates"] == 33


def test_measured_speeds_are_the_benchmarks_and_go_with_the_pixels():
    step = (ROOT / "docs/benchmarks/step.md").read_text()
    for name, row in (("convnet", "convnet"), ("wide_resnet", "wide_resnet_16_4")):
        found = re.search(rf"\| {row} \| DP-Mix_Self .*?\| (\d+\.\d) \([^|]*\| 0", step)
        measured = 16 * 34 / float(found[1]) * 1000  # examples times views
        assert suggest._SPEEDS[name][0] == pytest.approx(measured, rel=0.005)
    encoded = (ROOT / "docs/benchmarks/encoded.md").read_text()
    found = re.search(
        r"\| encoder \| 34 \| 1,000 .*\| (\d+\.\d) \([^|]*\|$", encoded, re.M
    )
    measured = 34_000 / float(found[1]) * 1000
    assert suggest._SPEEDS["pretrained"][0] == pytest.approx(measured, rel=0.005)
    features = (ROOT / "docs/benchmarks/features.md").read_text()
    assert f"256 filters | {suggest._SPEEDS['scattering'][0]:.0f} (" in features
    fast, slow = (
        values(network="convnet", image_size=size, minutes=200.0) for size in (32, 64)
    )
    assert fast["views.mixed"] == 18 and slow["views.mixed"] == 0


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"network": "lenet"}, "--network must be one of convnet"),
        ({"num_examples": 0}, "num_examples must be"),
        ({"minutes": 0.0}, "minutes must be"),
        ({"image_size": 1}, "image_size must be"),
        ({"epsilon": -1.0}, "epsilon must be"),
        ({"views_per_second": 0.0}, "views_per_second must be"),
        ({"minutes": 0.001}, "minutes are too few"),
    ],
)
def test_what_no_training_can_be_made_of_is_refused(changes, words):
    with pytest.raises(DPMixError, match=words):
        values(**changes)


@pytest.mark.parametrize("network", suggest.NETWORKS)
def test_the_file_sets_what_was_chosen_and_nothing_else(network, tmp_path):
    from dpmix_tf.training import default_config, pretrained_network
    from dpmix_tf.values import flatten

    settings = dict(network=network, minutes=1e6, image_size=32)
    choices = suggest.suggest(**GIVEN | settings)
    text = suggest.to_config_file(
        choices, data="image_folder", image_size=32, command="python bin/suggest.py"
    )
    path = tmp_path / "suggested.py"
    path.write_text(text)
    spec = importlib.util.spec_from_file_location("suggested", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = flatten(module.get_config().to_dict())
    expected = default_config()
    if network == "pretrained":
        expected.network = pretrained_network("efficientnet_lite0")
    expected = flatten(expected.to_dict())
    expected |= {"data.name": "image_folder", "data.image_size": 32}
    for choice in choices:
        named = isinstance(choice.value, dict)
        parts = choice.value if named else {"": choice.value}
        for name, value in parts.items():
            expected[f"{choice.field}.{name}".rstrip(".")] = value
    assert config == expected
    assert all(choice.reason and "\n" not in choice.reason for choice in choices)
