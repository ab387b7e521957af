"""What choosing among a drawn number of trials costs, and what it draws."""

import math
from collections import Counter

import numpy as np
import pytest
from dp_accounting import dp_event, rdp
from scipy import integrate, optimize, stats

from dpmix_tf.errors import DPMixError
from dpmix_tf.privacy import Ledger, PrivacyPlan, accounting, attacks, trials
from dpmix_tf.privacy.ledger import Entry
from dpmix_tf.privacy.selection import (
    DISTRIBUTIONS,
    Choice,
    Part,
    accountants,
    score_epsilon,
)
from dpmix_tf.privacy.statement import state_guarantee

DELTA = 1e-5
SETTINGS = dict(
    delta=DELTA,
    num_examples=1000,
    expected_batch_size=100,
    updates=50,
    accountant="rdp",
)


def epsilon_of(choice, noise=1.0, probability=1.0, updates=1):
    part = Part(noise, probability, updates, choice)
    return accounting.composed_epsilon((part,), DELTA, "rdp")


def log_gamma_of(mean, distribution):
    """The truncated negative binomial distribution's parameter (definition 1)."""
    if distribution == "geometric":
        return -math.log(mean)
    return optimize.brentq(lambda x: (math.exp(-x) - 1) / -x - mean, -50.0, -1e-6)


def from_renyi(orders, divergences):
    """Epsilon at DELTA (Canonne, Kamath and Steinke 2020, proposition 12)."""
    found = divergences + np.log1p(-1 / orders) - np.log(DELTA * orders) / (orders - 1)
    return float(np.min(found))


@pytest.mark.parametrize("mean", [2.0, 10.0, 100.0])
@pytest.mark.parametrize("noise", [1.0, 5.0])
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_the_paper_s_theorems_say_the_same(distribution, noise, mean):
    """Theorems 2 and 6 of Papernot and Steinke (2022), of a single Gaussian."""
    orders = np.array(rdp.RdpAccountant()._orders)
    orders = orders[orders > 1]
    one = orders / (2 * noise**2)
    if distribution == "poisson":
        # Of each order, epsilon and delta of one trial with e^epsilon - 1 = 1 / (order
        # - 1), exactly (Balle and Wang 2018), which is the smallest delta there is.
        small = np.log1p(1 / (orders - 1))
        exact = stats.norm.cdf(1 / (2 * noise) - small * noise) - np.exp(
            small
        ) * stats.norm.cdf(-1 / (2 * noise) - small * noise)
        least = one + mean * exact + math.log(mean) / (orders - 1)
        whole = from_renyi(orders, least)
        found = epsilon_of(Choice(mean, distribution, None), noise)
        assert whole <= found * (1 + 1e-9) and found < 1.6 * whole
        return
    eta = DISTRIBUTIONS[distribution]
    gamma = -log_gamma_of(mean, distribution)
    # Theorem 2 holds for every second order: the best one.
    second = np.min((1 - 1 / orders) * one + gamma / orders)
    total = one + (1 + eta) * second + math.log(mean) / (orders - 1)
    assert epsilon_of(Choice(mean, distribution, None), noise) == pytest.approx(
        from_renyi(orders, total), rel=2e-3
    )


def generating(distribution, mean):
    """The derivative of E[s^K], by which the best of K has a density."""
    if distribution == "poisson":
        return lambda s: mean * np.exp(mean * (s - 1))
    log_gamma = log_gamma_of(mean, distribution)
    gamma = math.exp(log_gamma)
    if distribution == "geometric":
        return lambda s: gamma / (1 - (1 - gamma) * s) ** 2
    return lambda s: (1 - gamma) / (1 - (1 - gamma) * s) / -log_gamma


@pytest.mark.parametrize("mean", [2.0, 10.0, 50.0])
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_what_is_known_exactly_is_never_above_the_claim(distribution, mean):
    """A trial publishes N(0, 4) or N(1, 4), which is also its score: the largest wins.

    The largest of K numbers has the density G'(F(x)) f(x), where G(s) = E[s^K].
    """
    noise = 2.0
    claim = epsilon_of(Choice(mean, distribution, None), noise)
    slope = generating(distribution, mean)

    def density(x, shift):
        return slope(stats.norm.cdf((x - shift) / noise)) * stats.norm.pdf(
            x, shift, noise
        )

    for shifts in ((0.0, 1.0), (1.0, 0.0)):

        def excess(x, epsilon, shifts=shifts):
            ours, theirs = density(x, shifts[0]), density(x, shifts[1])
            return np.maximum(ours - math.exp(epsilon) * theirs, 0.0)

        x = np.linspace(-40.0, 41.0, 400_001)
        delta = integrate.trapezoid(excess(x, claim), x)
        assert delta <= DELTA
        # And the claim is about something: one trial's epsilon is not enough.
        alone = accounting.epsilon(
            noise_multiplier=noise, sampling_probability=1.0, updates=1, delta=DELTA
        )
        if shifts == (1.0, 0.0) and mean >= 10:
            assert integrate.trapezoid(excess(x, 0.8 * alone), x) > DELTA


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_simulated_choices_never_exceed_the_claim(distribution):
    choice, noise, count = Choice(4.0, distribution, None), 2.0, 20_000
    random = np.random.default_rng(0)
    numbers = [len(trials.draw_trials(choice, 3)) for _ in range(count)]

    def best(shift):
        return np.array(
            [
                random.normal(shift, noise, size=number).max(initial=-np.inf)
                for number in numbers
            ]
        )

    out, taken = best(0.0), best(1.0)
    factor = math.exp(epsilon_of(choice, noise))
    for threshold in np.linspace(-2.0, 8.0, 41):
        rates = np.mean(taken > threshold), np.mean(out > threshold)
        for ours, theirs in (rates, rates[::-1]):
            spread = 5 * math.sqrt(ours / count) + 5 * factor * math.sqrt(
                theirs / count
            )
            assert ours <= factor * theirs + DELTA + spread


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_the_number_of_trials_is_drawn_as_it_is_accounted_for(distribution):
    mean, count = 5.0, 20_000
    choice = Choice(mean, distribution, None)
    candidates = [trials.draw_trials(choice, 3) for _ in range(count)]
    drawn = Counter(map(len, candidates))
    # Each trial draws its candidate anew, whatever the others have drawn.
    pairs = Counter(tuple(each[:2]) for each in candidates if len(each) > 1)
    shares = np.array([pairs[a, b] for a in range(3) for b in range(3)])
    assert stats.chisquare(shares).pvalue > 1e-4
    log_gamma = None if distribution == "poisson" else log_gamma_of(mean, distribution)
    for number in range(12):
        if distribution == "poisson":
            expected = math.exp(-mean) * mean**number / math.factorial(number)
        elif number == 0:
            expected = 0.0
        elif distribution == "geometric":
            expected = (1 - 1 / mean) ** (number - 1) / mean
        else:
            expected = (1 - math.exp(log_gamma)) ** number / number / -log_gamma
        spread = 5 * math.sqrt(max(expected, 1 / count) / count)
        assert abs(drawn[number] / count - expected) <= spread, number


def test_scores_have_their_noise_and_one_record_moves_them_by_one():
    with_noise, without = Choice(6.0, "poisson", 3.0), Choice(6.0, "poisson", None)
    scores = np.random.default_rng(0).uniform(size=50)
    found = [50 * trials.noised_score(scores, with_noise, 50) for _ in range(2_000)]
    assert np.std(found) == pytest.approx(3.0, rel=0.1)
    assert np.mean(found) == pytest.approx(scores.sum(), abs=0.4)
    exact = 50 * trials.noised_score(scores, without, 50)
    for value, most in ((1.0, 1.0), (-7.0, 0.0), (9.0, 1.0), (np.nan, 0.0)):
        more = 51 * trials.noised_score(np.append(scores, value), without, 51)
        assert more - exact == pytest.approx(most, abs=1e-12)
    with pytest.raises(DPMixError, match="for each of 49 validation records"):
        trials.noised_score(scores, without, 49)


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_training_and_validation_records_are_protected_alike(distribution):
    noise = trials.score_noise_for(3.0, DELTA, 8.0, distribution)
    choice = Choice(8.0, distribution, noise)
    assert 2.99 < score_epsilon(choice, DELTA) <= 3.0
    plan = PrivacyPlan.for_epsilon(
        epsilon=3.0,
        trials=8.0,
        trials_distribution=distribution,
        score_noise=noise,
        **SETTINGS,
    )
    assert 2.99 < plan.epsilon() <= 3.0
    # Whichever of the two has too little noise, it is told.
    for changes in ({"score_noise": 0.9 * noise}, {"noise_multiplier": 0.9}):
        weaker = PrivacyPlan(**(plan.to_dict() | changes))
        assert weaker.epsilon() > 3.0
    with pytest.raises(DPMixError, match="Raise privacy.score_noise"):
        PrivacyPlan.for_epsilon(
            epsilon=1.0,
            trials=8.0,
            trials_distribution=distribution,
            score_noise=noise,
            **SETTINGS,
        )


def chosen_plan(**changes):
    return PrivacyPlan(
        **(SETTINGS | dict(noise_multiplier=2.0, trials=4.0, score_noise=5.0) | changes)
    )


def test_a_choice_costs_all_updates_whichever_are_published():
    plan = chosen_plan()
    alone = chosen_plan(trials=1.0, score_noise=None)
    assert plan.epsilon() > 1.1 * alone.epsilon()
    assert plan.epsilon(updates=1) == plan.epsilon()
    assert plan.epsilon(updates=0) == 0
    assert Ledger.planned(plan, 1).epsilon(DELTA, "rdp") == plan.epsilon()
    assert Ledger.planned(plan, 0).epsilon(DELTA, "rdp") == 0


def test_two_choices_are_two_releases():
    plan = chosen_plan()
    entries = [Entry(run=name, plan=plan, updates=50) for name in "ab"]
    both = Ledger(tuple(entries)).epsilon(DELTA, "rdp")
    twice = Part(2.0, 0.1, 100, plan.choice)
    assert both > accounting.composed_epsilon((twice,), DELTA, "rdp")
    parts = (plan.part(), plan.part())
    assert both == accounting.composed_epsilon(parts, DELTA, "rdp") > plan.epsilon()
    # A record may have been trained on in one and scored in the other.
    assert len(accountants(parts)) == 4
    again = Ledger(tuple(entries)).joined(Ledger((entries[0],)))
    assert again.epsilon(DELTA, "rdp") == both


def test_other_spending_is_added_to_a_choice_by_renyi_divergences():
    plan = chosen_plan()
    other = Part(3.0, 0.2, 40)
    ledger = rdp.RdpAccountant()
    one = dp_event.PoissonSampledDpEvent(0.1, dp_event.GaussianDpEvent(2.0))
    ledger.compose(
        dp_event.RepeatAndSelectDpEvent(
            dp_event.SelfComposedDpEvent(one, 50), mean=4.0, shape=math.inf
        )
    )
    ledger.compose(
        dp_event.PoissonSampledDpEvent(0.2, dp_event.GaussianDpEvent(3.0)), 40
    )
    found = accounting.composed_epsilon((plan.part(), other), DELTA, "rdp")
    assert found == pytest.approx(ledger.get_epsilon(DELTA))


@pytest.mark.parametrize(
    "changes,message",
    [
        ({"accountant": "pld"}, 'accountant="rdp"'),
        ({"trials": 0.5}, "trials must be a finite number at least 1"),
        ({"trials": math.inf}, "trials must be a finite number"),
        ({"trials_distribution": "fixed"}, "must be one of poisson, geometric"),
        ({"trials": 1.0}, "score_noise is for trials above 1"),
        ({"score_noise": 0.0}, "score_noise must be a finite number above 0"),
    ],
)
def test_plans_that_cannot_be_accounted_for_are_refused(changes, message):
    with pytest.raises(DPMixError, match=message):
        chosen_plan(**changes)


def test_accountants_that_do_not_know_the_cost_are_refused():
    plan = chosen_plan()
    with pytest.raises(DPMixError, match="Renyi divergences only"):
        Ledger.planned(plan).epsilon(DELTA, "pld")
    with pytest.raises(DPMixError, match="PLD accountant only"):
        plan.epsilon(group_size=2)
    with pytest.raises(DPMixError, match="PLD accountant only"):
        attacks.trade_off(Ledger.planned(plan), DELTA, group_size=2)


def test_attacks_on_what_was_chosen_are_limited_by_its_epsilon():
    plan = chosen_plan()
    curve = attacks.trade_off(Ledger.planned(plan), DELTA)
    rate = curve.true_positive_rate(0.01)
    pair = attacks.TradeOff.of_pair(plan.epsilon(), DELTA)
    alone = chosen_plan(trials=1.0, score_noise=None)
    less = attacks.trade_off(Ledger.planned(alone), DELTA).true_positive_rate(0.01)
    assert less < rate < pair.true_positive_rate(0.01)


def test_the_noise_that_stops_attacks_knows_of_the_choice():
    settings = SETTINGS | {"trials": 6.0}
    plan = attacks.plan_for_attack(attack_success=0.1, at_fpr=0.01, **settings)
    curve = attacks.trade_off(Ledger.planned(plan), DELTA)
    assert 0.099 < curve.true_positive_rate(0.01) <= 0.1


def test_the_statement_tells_of_the_choice_and_of_what_it_assumes():
    said = state_guarantee(Ledger.planned(chosen_plan()), chosen_plan())
    assert "drawn from a Poisson distribution with mean 4" in said
    assert "noise of standard deviation 5 on the sum of scores" in said
    assert "all that is known about the other trainings, must stay secret" in said
    assert "other than by the choice among trials" in said
    public = chosen_plan(score_noise=None, trials_distribution="geometric")
    said = state_guarantee(Ledger.planned(public), public)
    assert "which are taken as public" in said and "geometric distribution" in said
    alone = chosen_plan(trials=1.0, score_noise=None)
    assert "choice" not in state_guarantee(Ledger.planned(alone), alone)


def test_a_chosen_plan_comes_back_from_a_file():
    plan = chosen_plan()
    again = Ledger.from_list(Ledger.planned(plan).to_list(), "x")
    assert again.epsilon(DELTA, "rdp") == plan.epsilon()
    assert again.entries[0].plan == plan
