import numpy as np
import pytest
import tensorflow as tf
from scipy import special, stats

from dpmix_tf.auditing.bounds import (
    clopper_pearson_bound,
    gaussian_bound,
    one_run_bound,
    roc,
)
from dpmix_tf.errors import DPMixError
from dpmix_tf.privacy import PrivacyPlan
from dpmix_tf.privacy.mechanism import GaussianMechanism

REPETITIONS = 100
# More bounds above the truth than this happen once in ten thousand times.
MOST_WRONG = stats.binom.ppf(0.9999, REPETITIONS, 0.05)


def coins(random, count):
    return random.random(count) < 0.5


@pytest.mark.slow
@pytest.mark.parametrize("epsilon", [1.0, 2.0, 4.0])
def test_one_gaussian_step_is_bounded_closely_from_below(epsilon):
    """Each weight of one noisy sum is a canary's; its epsilon is known."""
    count = 300_000
    plan = PrivacyPlan.for_epsilon(
        epsilon=epsilon,
        delta=1e-5,
        num_examples=100,
        expected_batch_size=100,
        updates=1,
        clip_norm=0.7,
    )
    # Balle and Wang 2018, theorem 8: the closed form.
    mean = 1 / plan.noise_multiplier
    delta = stats.norm.cdf(mean / 2 - epsilon / mean) - np.exp(
        epsilon
    ) * stats.norm.cdf(-mean / 2 - epsilon / mean)
    assert delta == pytest.approx(1e-5, rel=0.05)
    random = np.random.default_rng(0)
    bounds = []
    for repetition in range(REPETITIONS):
        included = coins(random, count)
        mechanism = GaussianMechanism(plan, seed=repetition)
        total = [tf.constant(plan.clip_norm * included, tf.float32)]
        (noisy,) = mechanism.noisy_mean(total, tf.constant(0, tf.int64))
        bounds.append(gaussian_bound(noisy.numpy(), included, plan=plan).epsilon)
    assert np.mean(bounds) >= 0.8 * epsilon
    assert np.sum(np.array(bounds) > epsilon) <= MOST_WRONG


@pytest.mark.parametrize("bound", [one_run_bound, clopper_pearson_bound])
@pytest.mark.parametrize("epsilon", [1.0, 3.0])
def test_randomised_response_is_bounded_closely_from_below(bound, epsilon):
    """Each bit is told truly with probability e^epsilon / (1 + e^epsilon)."""
    random = np.random.default_rng(1)
    found = []
    for _ in range(REPETITIONS):
        included = coins(random, 10_000)
        honest = random.random(10_000) < special.expit(epsilon)
        told = np.where(honest, included, ~included)
        scores = told + 0.01 * random.random(10_000)  # ties broken by chance
        found.append(bound(scores, included, delta=0.0).epsilon)
    assert np.mean(found) >= 0.8 * epsilon
    assert np.sum(np.array(found) > epsilon) <= MOST_WRONG


def test_a_delta_makes_bounds_smaller():
    random = np.random.default_rng(2)
    included = coins(random, 4_000)
    scores = included + 0.3 * random.standard_normal(4_000)
    for bound in (one_run_bound, clopper_pearson_bound):
        small, large = (
            bound(scores, included, delta=delta).epsilon for delta in (1e-9, 1e-3)
        )
        assert large < small


def test_perfect_attacks_are_bounded_by_their_number_alone():
    included = np.arange(2_000) % 3 == 0
    order = np.random.default_rng(0).permutation(2_000)
    included = included[order]
    scores = included.astype(float)
    plan = PrivacyPlan.for_epsilon(
        epsilon=2.0, delta=1e-5, num_examples=10, expected_batch_size=5, updates=4
    )
    assert 4 < one_run_bound(scores, included, delta=1e-5).epsilon < np.log(2_000)
    assert 4 < clopper_pearson_bound(scores, included, delta=1e-5).epsilon < 8
    assert gaussian_bound(scores, included, plan=plan).epsilon > 4


def test_guessing_bounds_nothing():
    random = np.random.default_rng(3)
    included = coins(random, 3_000)
    plan = PrivacyPlan.for_epsilon(
        epsilon=2.0, delta=1e-5, num_examples=10, expected_batch_size=5, updates=4
    )
    for scores in (random.random(3_000), np.zeros(3_000)):
        assert one_run_bound(scores, included, delta=1e-5).epsilon < 0.2
        assert clopper_pearson_bound(scores, included, delta=1e-5).epsilon < 0.2
        assert gaussian_bound(scores, included, plan=plan).epsilon < 0.2


def test_scores_that_tell_nothing_are_refused():
    included = np.array([True, False, True])
    with pytest.raises(DPMixError, match="one entry per canary"):
        one_run_bound(np.zeros(2), included, delta=1e-5)
    with pytest.raises(DPMixError, match="NaN"):
        one_run_bound(np.array([0, np.nan, 1]), included, delta=1e-5)
    with pytest.raises(DPMixError, match="on one side"):
        one_run_bound(np.zeros(3), np.ones(3, bool), delta=1e-5)
    plan = PrivacyPlan(
        noise_multiplier=0.0,
        delta=1e-5,
        num_examples=10,
        expected_batch_size=5,
        updates=4,
    )
    with pytest.raises(DPMixError, match="noise_multiplier > 0"):
        gaussian_bound(np.zeros(3), included, plan=plan)


def test_the_roc_of_known_scores():
    included = np.repeat([True, False], 1_000)
    perfect = roc(included.astype(float), included)
    assert perfect.auc == 1.0 and perfect.at[0.001][0] == 1.0
    assert perfect.at[0.001][1] == pytest.approx(0.025 ** (1 / 1_000))
    assert roc(np.zeros(2_000), included).auc == 0.5
    random = np.random.default_rng(0)
    scores = random.standard_normal(2_000) + included
    curve = roc(scores, included)
    truth = stats.norm.cdf(1 / np.sqrt(2))
    assert curve.auc_interval[0] < truth < curve.auc_interval[1]
    assert 0.02 < curve.auc_interval[1] - curve.auc_interval[0] < 0.06
    value, low, high = curve.at[0.01]
    assert low <= value <= high
    assert low < stats.norm.sf(stats.norm.isf(0.01) - 1) < high
