import math

import numpy as np
import pytest
from dp_accounting import pld
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, stats

from dpmix_tf.errors import DPMixError
from dpmix_tf.privacy import Ledger, PrivacyPlan, accounting, groups
from dpmix_tf.privacy.ledger import Entry
from dpmix_tf.privacy.statement import state_guarantee
from tests.conftest import plan_for

MECHANISMS = [(3.0, 0.08, 200), (0.7, 1e-3, 50), (1.1, 0.5, 5), (0.9, 1.0, 3)]


def settings_of(mechanism):
    names = "noise_multiplier", "sampling_probability", "updates"
    return dict(zip(names, mechanism, strict=True), delta=1e-5)


def divergence(upper, lower, epsilon, noise, group_size):
    """The hockey-stick divergence of two densities, by integration."""

    def excess(x):
        return max(upper(x) - math.exp(epsilon) * lower(x), 0.0)

    edges = np.linspace(-12 * noise, group_size + 12 * noise, 60)
    return sum(
        integrate.quad(excess, *ends, epsabs=1e-14, limit=200)[0]
        for ends in zip(edges, edges[1:], strict=False)
    )


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_a_group_of_one_is_the_usual_guarantee(mechanism):
    usual = accounting.epsilon(**settings_of(mechanism))
    assert accounting.epsilon(**settings_of(mechanism), group_size=1) == usual
    noise, q, updates = mechanism
    own = groups.privacy_losses(
        noise_multiplier=noise,
        sampling_probability=q,
        updates=updates,
        group_size=1,
        grid=1e-4,
    )
    finest = pld.privacy_loss_distribution.from_gaussian_mechanism(
        noise, sampling_prob=q, value_discretization_interval=1e-4
    ).self_compose(updates)
    expected = finest.get_epsilon_for_delta(1e-5)
    assert own.get_epsilon_for_delta(1e-5) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("noise", [0.6, 2.5])
@pytest.mark.parametrize("q", [0.01, 0.3])
@pytest.mark.parametrize("size", [1, 3, 12])
def test_one_update_is_told_apart_as_often_as_integration_says(noise, q, size):
    weights = stats.binom.pmf(np.arange(size + 1), size, q)

    def without(x):
        return stats.norm.pdf(x, scale=noise)

    def within(x):
        return weights @ stats.norm.pdf(x, loc=np.arange(size + 1), scale=noise)

    mixture = groups.Mixture(noise, q, size)
    still = size * math.log1p(-q)
    epsilons = np.array([2 * still, -0.01, 0.0, 0.05, 0.5, -still * 0.99, 3.0])
    for epsilon, removed, added in zip(
        epsilons,
        mixture.removal_delta(epsilons),
        mixture.addition_delta(epsilons),
        strict=True,
    ):
        expected = divergence(within, without, epsilon, noise, size)
        assert removed == pytest.approx(expected, rel=1e-6, abs=1e-12)
        expected = divergence(without, within, epsilon, noise, size)
        assert added == pytest.approx(expected, rel=1e-6, abs=1e-12)


def test_the_discrete_losses_are_an_upper_bound_and_tight():
    mixture = groups.Mixture(1.5, 0.1, 4)
    epsilons = np.linspace(0.0, 3.0, 40)
    for losses, exact in (
        (mixture.removal(1e-3), mixture.removal_delta(epsilons)),
        (mixture.addition(1e-3), mixture.addition_delta(epsilons)),
    ):
        bound = losses.get_delta_for_epsilon(epsilons)
        assert np.all(bound >= exact - 1e-14)
        np.testing.assert_allclose(bound, exact, rtol=1e-2, atol=1e-9)


def test_the_worse_of_both_directions_counts():
    mixture = groups.Mixture(1.5, 0.1, 4)
    losses = groups.privacy_losses(
        noise_multiplier=1.5,
        sampling_probability=0.1,
        updates=1,
        group_size=4,
        grid=1e-3,
    )
    epsilons = np.array([-0.2, 0.5])
    removed, added = mixture.removal_delta(epsilons), mixture.addition_delta(epsilons)
    assert removed[0] < added[0] and removed[1] > added[1]
    found = losses.get_delta_for_epsilon(epsilons)
    np.testing.assert_allclose(found, np.maximum(removed, added), rtol=1e-3)


@pytest.mark.parametrize("angle", [0.3, math.pi / 2, math.pi])
def test_gradients_that_all_point_one_way_are_the_worst_case(angle):
    """Two examples in the plane, by a sum over a fine grid of outputs."""
    noise, q = 0.8, 0.3
    across = np.linspace(-8, 10, 1201)
    x, y = np.meshgrid(across, across)
    moves = np.array([[1.0, 0.0], [math.cos(angle), math.sin(angle)]])
    means = [(1 - q) ** 2, [0, 0]], [q * (1 - q), moves[0]]
    means += [q * (1 - q), moves[1]], [q * q, moves.sum(axis=0)]

    def density(mean):
        squares = (x - mean[0]) ** 2 + (y - mean[1]) ** 2
        return np.exp(-squares / (2 * noise**2)) / (2 * math.pi * noise**2)

    within = sum(weight * density(np.asarray(mean)) for weight, mean in means)
    without, area = density((0, 0)), (across[1] - across[0]) ** 2
    worst = groups.Mixture(noise, q, 2)
    epsilons = np.array([-0.3, 0.0, 0.2, 0.6, 1.5])
    removed, added = worst.removal_delta(epsilons), worst.addition_delta(epsilons)
    for number, epsilon in enumerate(epsilons):
        factor = math.exp(epsilon)
        assert np.maximum(within - factor * without, 0).sum() * area < removed[number]
        found = np.maximum(without - factor * within, 0).sum() * area
        assert found <= added[number] + 1e-9


@pytest.mark.parametrize("size", [2, 7])
def test_full_batches_are_one_gaussian_of_the_whole_group(size):
    spent = accounting.epsilon(**settings_of((6.0, 1.0, 9)), group_size=size)
    once = accounting.epsilon(**settings_of((6.0 / size / 3, 1.0, 1)))
    assert spent == pytest.approx(once, rel=1e-3)
    nearly = accounting.epsilon(**settings_of((6.0, 1 - 1e-9, 9)), group_size=size)
    assert nearly == pytest.approx(spent, rel=1e-3)


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_larger_groups_cost_more_and_less_than_the_general_bound(mechanism):
    """Which is: m epsilon, at delta (e^(m epsilon) - 1) / (e^epsilon - 1)."""
    noise, q, updates = mechanism
    alone = pld.privacy_loss_distribution.from_gaussian_mechanism(
        noise, sampling_prob=q, value_discretization_interval=1e-3
    ).self_compose(updates)
    epsilons = np.linspace(1e-3, 12.0, 600)
    deltas = np.asarray(alone.get_delta_for_epsilon(epsilons))
    last = 0.0
    for size in (1, 2, 3, 6):
        spent = accounting.epsilon(**settings_of(mechanism), group_size=size)
        assert spent > last
        last = spent
        grown = deltas * np.expm1(size * epsilons) / np.expm1(epsilons)
        general = size * epsilons[grown <= 1e-5]
        assert spent <= general.min(initial=math.inf) * (1 + 1e-3)


@settings(max_examples=15, deadline=None)
@given(st.floats(0.3, 5.0), st.floats(-4.0, -0.05), st.integers(1, 400))
def test_the_inverse_of_the_ratio_is_its_inverse(noise, log_q, size):
    mixture = groups.Mixture(noise, 10**log_q, size)
    x = np.linspace(mixture.lowest / 5, mixture.highest, 50)
    ratios = mixture.log_ratio(x)
    np.testing.assert_allclose(
        mixture.log_ratio(mixture.where_ratio_is(ratios)), ratios, atol=1e-9, rtol=1e-9
    )
    assert mixture.where_ratio_is(np.array([-1e6]))[0] == -math.inf


def test_a_ledger_composes_what_plans_reveal_about_a_group():
    plan, other = plan_for(100, updates=20, noise=4.0), plan_for(100, noise=6.0)
    both = Ledger((Entry(run="a", plan=plan, updates=20),)).joined(
        Ledger((Entry(run="b", plan=other, updates=10),))
    )
    one = Ledger.planned(plan).epsilon(1e-5, group_size=3)
    two = Ledger.planned(other).epsilon(1e-5, group_size=3)
    assert max(one, two) < both.epsilon(1e-5, group_size=3) < one + two
    assert both.epsilon(1e-5) < both.epsilon(1e-5, group_size=2)
    halves = Ledger((Entry(run="a", plan=plan, updates=10),)).joined(
        Ledger((Entry(run="b", plan=plan, updates=10),))
    )
    assert halves.epsilon(1e-5, group_size=3) == one


def test_the_statement_says_on_request_what_holds_for_a_group():
    plan = plan_for(100, noise=4.0)  # accounted for by RDP
    text = state_guarantee(Ledger.planned(plan), plan, 3)
    spent = Ledger.planned(plan).epsilon(plan.delta, "pld", 3)
    shown = float(text.split("with at most 3 examples: (")[1].split(",")[0])
    assert spent <= shown < spent + 0.0011
    assert "people who appear in more than 3 examples" in text
    usual = state_guarantee(Ledger.planned(plan), plan)
    assert "with at most" not in usual and "more than one example" in usual


@pytest.mark.parametrize("size", [0, -1, 2.0, True, None])
def test_sizes_that_are_not_whole_numbers_are_refused(size):
    plan = PrivacyPlan(
        noise_multiplier=2.0,
        delta=1e-5,
        num_examples=100,
        expected_batch_size=10,
        updates=2,
    )
    with pytest.raises(DPMixError, match="group_size must be a whole number"):
        plan.epsilon(group_size=size)
    with pytest.raises(DPMixError, match="group_size must be a whole number"):
        state_guarantee(Ledger.planned(plan), plan, size)


def test_renyi_divergences_do_not_account_for_groups():
    plan = plan_for(100)
    assert plan.epsilon(group_size=1) == plan.epsilon()
    with pytest.raises(DPMixError, match="by the PLD accountant only"):
        plan.epsilon(group_size=2)


def test_without_noise_or_updates_a_group_is_told_apart_always_or_never():
    assert math.isinf(accounting.epsilon(**settings_of((0.0, 0.1, 3)), group_size=4))
    assert accounting.epsilon(**settings_of((1.0, 0.1, 0)), group_size=4) == 0


def test_large_groups_leave_out_what_never_happens():
    """A thousand examples at one in a hundred: about ten join, never six hundred."""
    mixture = groups.Mixture(5.0, 0.01, 1_000)
    assert 20 < len(mixture._shifts) < 100 and 0 < mixture.missing < 1e-21
    mechanism = settings_of((5.0, 0.01, 20))
    assert 80 < accounting.epsilon(**mechanism, group_size=1_000) < 100
