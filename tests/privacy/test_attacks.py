"""Limits to membership attacks, beside oracles that know nothing of the accountant."""

import dataclasses
import math

import numpy as np
import pytest
from scipy import special, stats

from dpmix_tf.errors import DPMixError
from dpmix_tf.privacy import Ledger, attacks
from dpmix_tf.privacy.ledger import Entry
from tests.conftest import plan_for

RATES = np.array([1e-4, 1e-3, 0.01, 0.05, 0.3, 0.9])
DRAWS = 200_000


def curve_of(noise, q=1.0, updates=1, delta=1e-5, **settings):
    ledger = Ledger.planned(plan_of(noise, q, updates, delta))
    return attacks.trade_off(ledger, delta, **settings)


def plan_of(noise, q, updates, delta=1e-5):
    plan = plan_for(1000, updates=updates, noise=noise)
    return dataclasses.replace(plan, expected_batch_size=1000 * q, delta=delta)


@pytest.mark.parametrize(("noise", "updates"), [(1.0, 1), (20.0, 100), (0.4, 1)])
def test_full_batches_are_told_apart_as_two_gaussians_are(noise, updates):
    curve = curve_of(noise, updates=updates)
    mu = math.sqrt(updates) / noise
    expected = stats.norm.cdf(mu + stats.norm.ppf(RATES))
    found = curve.true_positive_rate(RATES)
    assert np.all(found >= expected)
    np.testing.assert_allclose(found, expected, rtol=0.005)
    assert mu <= curve.mu <= 1.005 * mu
    largest = 2 * stats.norm.cdf(mu / 2) - 1
    assert largest <= curve.advantage <= 1.005 * largest
    # The loss is N(mu^2 / 2, mu^2) for whoever was in.
    exceeded = mu**2 / 2 + mu * stats.norm.isf(1e-5)
    assert exceeded <= curve.largest_loss(1e-5) <= 1.2 * exceeded


@pytest.mark.parametrize(("noise", "q", "updates"), [(1.0, 0.1, 1), (0.8, 0.2, 6)])
def test_the_best_attack_on_sampled_updates_stays_just_below_the_limit(
    noise, q, updates
):
    """It thresholds the likelihood ratio of N(0, s^2) and (1-q) N(0, s^2) + q N(1)."""
    random = np.random.default_rng(0)

    def scores(member):
        drawn = random.normal(scale=noise, size=(DRAWS, updates))
        drawn += member * (random.random((DRAWS, updates)) < q)
        ratios = np.log1p(q * np.expm1((drawn - 0.5) / noise**2))
        return ratios.sum(axis=1)

    outside, inside = np.sort(scores(False)), scores(True)
    curve = curve_of(noise, q, updates)
    for rate in (0.01, 0.05, 0.2):
        count = int(DRAWS * rate)
        found = np.mean(inside > outside[-count])
        # Of the share, and of the threshold, where ratios' densities differ by less
        # than found / rate.
        error = math.sqrt(found / DRAWS) + found / rate * math.sqrt(rate / DRAWS)
        limit = curve.true_positive_rate(rate)
        assert found - 4 * error <= limit <= 1.03 * found + 4 * error
        assert found / rate > 1.3 or rate == 0.2  # an attack worth the name


def test_the_limit_grows_with_epsilon_and_with_false_positives():
    rates = np.linspace(0.01, 1, 100)
    last, less = np.zeros(100), {}
    for noise in (8.0, 4.0, 2.0, 1.0):  # epsilon grows
        curve = curve_of(noise, 0.1, 20)
        found = curve.true_positive_rate(rates)
        assert np.all(np.diff(found) >= 0) and np.all(found >= rates)
        assert np.all(found >= last)
        more = {
            "mu": curve.mu,
            "advantage": curve.advantage,
            "loss": curve.largest_loss(1e-5),
            "posterior": curve.posterior(0.01, 1e-5),
        }
        assert all(more[name] > value for name, value in less.items())
        last, less = found, more


def test_the_whole_curve_says_more_than_its_pair_which_holds_nevertheless():
    plan = plan_of(2.0, 0.1, 50)
    curve = attacks.trade_off(Ledger.planned(plan), plan.delta)
    epsilon = Ledger.planned(plan).epsilon(plan.delta)
    pair = attacks.TradeOff.of_pair(epsilon, plan.delta)
    assert np.all(curve.true_positive_rate(RATES) < pair.true_positive_rate(RATES))
    assert curve.advantage < pair.advantage
    # By hand, at the two ends of Dong, Roth and Su's equation (5).
    factor = math.exp(epsilon)
    assert pair.true_positive_rate(1e-3) == pytest.approx(factor * 1e-3 + 1e-5)
    expected = 1 - (1 - 0.9 - 1e-5) / factor
    assert pair.true_positive_rate(0.9) == pytest.approx(expected)
    fair = (1 - 1e-5) / (1 + factor)  # where the ends meet
    assert pair.advantage == pytest.approx(1 - 2 * fair)


def test_mu_bounds_the_curve_from_outside_and_no_smaller_one_does():
    curve = curve_of(1.0, 0.1, 10)
    rates = np.geomspace(1e-13, 0.5, 500)

    def gaussian(mu):
        return special.ndtr(mu + special.ndtri(rates)) + attacks.PRECISION

    found = curve.true_positive_rate(rates)
    assert np.all(found <= gaussian(curve.mu))
    assert not np.all(found <= gaussian(0.99 * curve.mu))


def test_odds_shift_by_more_than_the_largest_loss_as_rarely_as_said():
    noise, q, probability = 1.0, 0.1, 5e-4
    curve = curve_of(noise, q, delta=probability)
    largest = curve.largest_loss(probability)
    # Where the ratio of one update's densities is e^largest, and what is beyond it.
    x = 0.5 + noise**2 * math.log1p(math.expm1(largest) / q)
    beyond = (1 - q) * stats.norm.sf(x / noise) + q * stats.norm.sf((x - 1) / noise)
    assert probability / 5 < beyond <= probability
    assert largest > plan_of(noise, q, 1, probability).epsilon()
    odds = 0.01 / 0.99 * math.exp(largest)
    assert curve.posterior(0.01, probability) == pytest.approx(odds / (1 + odds))
    even = math.exp(largest) / (1 + math.exp(largest))
    assert curve.posterior(0.5, probability) == pytest.approx(even)


def test_without_noise_everything_is_found_and_without_updates_nothing():
    everything = curve_of(0.0, 0.1, 3)
    assert not everything.guaranteed
    assert everything.true_positive_rate(0.0) == everything.advantage == 1
    assert everything.mu == everything.largest_loss(1e-5) == math.inf
    assert everything.posterior(0.01, 1e-5) == 1
    nothing = attacks.trade_off(Ledger(), 1e-5)
    assert nothing.guaranteed
    np.testing.assert_array_equal(nothing.true_positive_rate(RATES), RATES)
    assert nothing.mu == nothing.advantage == nothing.largest_loss(1e-5) == 0
    assert nothing.posterior(0.01, 1e-5) == pytest.approx(0.01)


def test_a_pair_alone_implies_no_mu():
    assert attacks.TradeOff.of_pair(1.0, 0.0).mu == math.inf
    assert not attacks.TradeOff.of_pair(math.inf, 1e-5).guaranteed


def test_all_plans_of_a_ledger_count_and_a_group_is_easier_to_find():
    plan, other = plan_of(4.0, 0.1, 20), plan_of(6.0, 0.1, 10)
    both = Ledger((Entry(run="a", plan=plan, updates=20),)).joined(
        Ledger((Entry(run="b", plan=other, updates=10),))
    )
    alone = attacks.trade_off(Ledger.planned(plan), 1e-5).true_positive_rate(0.01)
    together = attacks.trade_off(both, 1e-5).true_positive_rate(0.01)
    group = attacks.trade_off(both, 1e-5, group_size=3).true_positive_rate(0.01)
    assert alone < together < group
    people = dataclasses.replace(other, record="person")
    mixed = Ledger.planned(plan).joined(
        Ledger((Entry(run="b", plan=people, updates=1),))
    )
    with pytest.raises(DPMixError, match="protect different things"):
        attacks.trade_off(mixed, 1e-5)


@pytest.mark.parametrize(
    ("success", "rate", "batch", "updates"),
    [(0.3, 0.01, 100, 50), (0.02, 0.01, 100, 50), (0.2, 0.001, 1000, 4)],
)
def test_noise_for_an_attacks_success_gives_it_back(success, rate, batch, updates):
    settings = dict(num_examples=1000, expected_batch_size=batch, updates=updates)
    plan = attacks.plan_for_attack(
        attack_success=success, at_fpr=rate, delta=1e-5, **settings
    )
    curve = attacks.trade_off(Ledger.planned(plan), plan.delta)
    assert 0.999 * success < curve.true_positive_rate(rate) <= success
    if batch == 1000:  # one Gaussian, by its own formula
        mu = stats.norm.ppf(success) - stats.norm.ppf(rate)
        assert plan.noise_multiplier == pytest.approx(math.sqrt(updates) / mu, rel=1e-3)


@pytest.mark.parametrize(
    ("success", "rate", "updates", "words"),
    [
        (0.005, 0.01, 50, "attack_success must be .* above 0.01"),
        (1.0, 0.01, 50, "attack_success must be .* below 1"),
        (0.1, 0.0, 50, "at_fpr must be"),
        (0.5, 0.01, 1, "even without noise"),
        (0.01 + 1e-9, 0.01, 50, "too close for the accountant"),
    ],
)
def test_success_that_cannot_be_had_is_refused(success, rate, updates, words):
    settings = dict(num_examples=1000, expected_batch_size=100, updates=updates)
    with pytest.raises(DPMixError, match=words):
        attacks.plan_for_attack(
            attack_success=success, at_fpr=rate, delta=1e-5, **settings
        )


@pytest.mark.parametrize("rate", [-0.1, 1.1, math.nan])
def test_rates_that_are_none_are_refused(rate):
    with pytest.raises(DPMixError, match="false-positive rate must be in"):
        curve_of(1.0).true_positive_rate(rate)
