import math

import dp_accounting
import hypothesis
import pytest
from dp_accounting import pld
from hypothesis import strategies as st

from dpmix_tf.errors import DPMixError
from dpmix_tf.privacy import Ledger, PrivacyPlan, accounting, losses
from dpmix_tf.privacy.statement import state_guarantee

PUBLISHED = dict(num_examples=50_000, expected_batch_size=4096, delta=1e-5)


@pytest.mark.parametrize(
    ("epsilon", "pld", "rdp"),
    [(1, 15.020, 16.288), (2, 8.063, 8.689), (4, 4.423, 4.732), (8, 2.528, 2.679)],
)
def test_noise_for_the_published_budget_is_the_known_constant(epsilon, pld, rdp):
    for accountant, expected in (("pld", pld), ("rdp", rdp)):
        plan = PrivacyPlan.for_epsilon(
            epsilon=epsilon, updates=2_400, accountant=accountant, **PUBLISHED
        )
        assert plan.noise_multiplier == pytest.approx(expected, rel=0.005)
        assert plan.epsilon() <= epsilon


@pytest.mark.parametrize(
    ("noise", "q", "updates", "pld", "rdp"),
    [
        (3.0, 4096 / 50_000, 2_500, 6.579, 7.099),
        (10.0, 4096 / 50_000, 875, 0.903, 0.988),
        (1.5, 0.04, 2_250, 6.769, 7.329),
    ],
)
def test_epsilon_of_known_mechanisms(noise, q, updates, pld, rdp):
    for accountant, expected in (("pld", pld), ("rdp", rdp)):
        spent = accounting.epsilon(
            noise_multiplier=noise,
            sampling_probability=q,
            updates=updates,
            delta=1e-5,
            accountant=accountant,
        )
        assert spent == pytest.approx(expected, abs=0.001)


def test_full_batches_are_the_plain_gaussian_mechanism():
    # Balle and Wang 2018, theorem 8: the exact delta of one Gaussian release.
    def delta(epsilon, sigma):
        def cdf(x):
            return 0.5 * math.erfc(-x / math.sqrt(2))

        half, ratio = 1 / (2 * sigma), epsilon * sigma
        return cdf(half - ratio) - math.exp(epsilon) * cdf(-half - ratio)

    spent = accounting.epsilon(
        noise_multiplier=2.0, sampling_probability=1.0, updates=4, delta=1e-5
    )
    # Four releases with noise 2 are one with noise 2 / sqrt(4) = 1.
    assert delta(spent, 1.0) == pytest.approx(1e-5, rel=0.01)


@pytest.mark.parametrize("target", [0.05, 0.7, 3.0, 20.0])
@pytest.mark.parametrize("q", [0.001, 0.3, 1.0])
def test_calibrated_noise_never_spends_more_than_the_target(target, q):
    settings = dict(sampling_probability=q, updates=200, delta=1e-6, accountant="rdp")
    noise = accounting.noise_multiplier_for(target_epsilon=target, **settings)
    spent = accounting.epsilon(noise_multiplier=noise, **settings)
    less = accounting.epsilon(noise_multiplier=noise * 0.999, **settings)
    assert spent <= target < less


def test_epsilon_grows_with_every_update_and_starts_at_zero():
    plan = PrivacyPlan(noise_multiplier=2.0, updates=50, **PUBLISHED)
    spent = [plan.epsilon(updates) for updates in (0, 1, 10, 50)]
    assert spent[0] == 0
    assert spent == sorted(spent) and len(set(spent)) == 4


def test_no_noise_is_no_privacy():
    plan = PrivacyPlan(noise_multiplier=0.0, updates=1, **PUBLISHED)
    assert math.isinf(plan.epsilon())
    assert "NOT differentially private" in state_guarantee(Ledger.planned(plan), plan)


def test_largest_integer_finds_the_last_that_passes():
    for last in (0, 1, 2, 3, 17, 100):
        assert accounting.largest_integer(lambda n, last=last: n <= last, 100) == last


def test_epsilons_that_renyi_divergences_cannot_express_are_reached_by_pld():
    settings = dict(sampling_probability=0.5, updates=10, delta=1e-5)
    noise = accounting.noise_multiplier_for(target_epsilon=1e-3, **settings)
    spent = accounting.epsilon(noise_multiplier=noise, **settings)
    assert 0.9e-3 < spent <= 1e-3


def test_unreachable_epsilon_is_refused():
    with pytest.raises(DPMixError, match="too small"):
        accounting.noise_multiplier_for(
            target_epsilon=1e-6,
            sampling_probability=1.0,
            updates=10,
            delta=1e-5,
            accountant="rdp",
        )


# Noise for epsilon = 3 after 20 updates at delta = 1e-5, by PLD on the finest grid.
RARE = [(1.6e-5, 0.257188), (1e-4, 0.320914), (8e-4, 0.414186), (4e-3, 0.514505)]


@pytest.mark.parametrize(("q", "noise"), RARE)
def test_examples_that_are_sampled_rarely_cost_few_points(q, noise, monkeypatch):
    """The noise is that of grids of 500,000 points, in a tenth of their points."""
    points = []

    distribution = losses.privacy_loss_distribution
    made = distribution.from_gaussian_mechanism

    def counting(sigma, *, value_discretization_interval, **more):
        spread = 2 * (math.log(q) + 0.5 / sigma**2 + 10 / sigma)
        points.append(spread / value_discretization_interval)
        return made(
            sigma, value_discretization_interval=value_discretization_interval, **more
        )

    monkeypatch.setattr(distribution, "from_gaussian_mechanism", counting)
    settings = dict(sampling_probability=q, updates=20, delta=1e-5)
    found = accounting.noise_multiplier_for(target_epsilon=3.0, **settings)
    assert found == pytest.approx(noise, rel=2e-4)
    assert accounting.epsilon(noise_multiplier=found, **settings) <= 3.0
    assert 10_000 < sum(points) < 400_000


@pytest.mark.parametrize(
    ("noise", "q", "updates"),
    [(0.26, 1.6e-5, 20), (0.57, 8e-4, 20), (2.53, 0.08, 2_400), (0.9, 1.0, 3)],
)
def test_a_coarser_grid_is_an_upper_bound_and_as_tight(noise, q, updates):
    finest = pld.PLDAccountant(value_discretization_interval=1e-4)
    update = dp_accounting.GaussianDpEvent(noise)
    if q < 1:
        update = dp_accounting.PoissonSampledDpEvent(q, update)
    expected = finest.compose(update, updates).get_epsilon(1e-5)
    spent = accounting.epsilon(
        noise_multiplier=noise, sampling_probability=q, updates=updates, delta=1e-5
    )
    assert expected * (1 - 1e-9) <= spent <= expected * (1 + 1e-4)


@hypothesis.settings(max_examples=8, deadline=None)
@hypothesis.given(
    st.floats(-4.0, 0.0),
    st.integers(1, 300),
    st.floats(0.5, 20.0),
    st.floats(-9.0, -4.0),
)
def test_noise_by_pld_is_never_too_little_nor_much_too_large(
    log_q, updates, target, log_delta
):
    settings = dict(
        sampling_probability=10**log_q, updates=updates, delta=10**log_delta
    )
    noise = accounting.noise_multiplier_for(target_epsilon=target, **settings)
    spent = accounting.epsilon(noise_multiplier=noise, **settings)
    less = accounting.epsilon(noise_multiplier=noise * 0.999, **settings)
    assert spent <= target < less


@pytest.mark.parametrize("accountant", accounting.ACCOUNTANTS)
def test_a_delta_that_needs_no_noise_gets_little(accountant):
    """One update that a record joins with probability 0.001, and delta = 0.01."""
    settings = dict(sampling_probability=1e-3, updates=1, delta=0.01)
    noise = accounting.noise_multiplier_for(
        target_epsilon=1.0, accountant=accountant, **settings
    )
    assert 0 < noise < 0.5
    spent = accounting.epsilon(
        noise_multiplier=noise, accountant=accountant, **settings
    )
    assert spent <= 1.0
