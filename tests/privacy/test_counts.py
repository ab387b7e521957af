import math
from fractions import Fraction

import dp_accounting
import numpy as np
import pytest
import tensorflow as tf
from dp_accounting import pld
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from dpmix_tf.errors import DPMixError
from dpmix_tf.privacy import Ledger, PrivacyPlan, randomness
from dpmix_tf.privacy.counts import clipped_counts, counts_plan, noised_counts
from dpmix_tf.privacy.ledger import Entry
from dpmix_tf.privacy.statement import history_warning
from dpmix_tf.training import DPMixModel
from dpmix_tf.views import ViewMaker
from tests.conftest import plan_for, tiny_network

ANY = st.floats(width=64, allow_nan=True, allow_infinity=True)
RECORDS = hnp.arrays(
    np.float64, st.tuples(st.integers(1, 6), st.integers(1, 5)), elements=ANY
)


@settings(max_examples=200, deadline=None)
@given(RECORDS)
def test_removing_any_record_moves_the_counts_by_at_most_one(records):
    """Whatever it is, and without any rounding."""
    whole = clipped_counts(records)
    assert np.all(np.isfinite(whole))
    for row in range(len(records)):
        moved = clipped_counts(np.delete(records, row, axis=0))
        square = sum(
            (Fraction(float(a)) - Fraction(float(b))) ** 2
            for a, b in zip(whole, moved, strict=True)
        )
        assert square <= 1


def test_many_records_add_up_without_rounding():
    random = np.random.default_rng(0)
    records = random.normal(size=(20_000, 3)) * 10.0 ** random.integers(-2, 9, (1, 3))
    whole = clipped_counts(records)
    assert np.array_equal(whole, clipped_counts(records[::-1]))
    for row in range(0, 20_000, 500):
        moved = whole - clipped_counts(np.delete(records, row, axis=0))
        assert np.linalg.norm(moved) <= 1


def test_single_labels_are_counted_as_they_are():
    labels = np.array([0, 2, 2, 1, 2])
    assert list(clipped_counts(np.eye(4)[labels])) == [1, 1, 3, 0]
    assert list(clipped_counts(np.zeros((0, 3)))) == [0, 0, 0]


def test_a_records_counts_keep_their_direction():
    found = clipped_counts([[3.0, 4.0], [0.3, 0.4], [np.nan, 9.0], [np.inf, 0.0]])
    np.testing.assert_allclose(found, [0.9, 1.2], atol=1e-6)
    np.testing.assert_allclose(clipped_counts([[3e300, 4e300]]), [0.6, 0.8], atol=1e-6)


def release(noise, seed, counts=(0,) * 6):
    """Noised counts of a hundred records, so many of each label."""
    labels = np.repeat(np.arange(len(counts)), counts)
    one_hot = np.zeros((100, len(counts)))
    one_hot[np.arange(len(labels)), labels] = 1
    return noised_counts(one_hot, counts_plan(100, noise, 1e-5), seed)[0]


def test_the_noise_is_normal_with_the_planned_deviation():
    counts, noise = np.array([5, 0, 90]), []
    for seed in range(4_000):
        released = release(3.0, seed, counts)
        assert released.dtype == np.float64 and released.shape == (3,)
        noise.append(released - counts)
    noise = np.array(noise) / 3.0
    assert np.all(np.abs(noise.mean(axis=0)) < 4 / math.sqrt(4_000))
    assert np.all(np.abs(noise.var(axis=0) - 1) < 4 * math.sqrt(2 / 4_000))
    assert np.all(np.abs(np.corrcoef(noise.T) - np.eye(3)) < 0.07)
    assert np.mean(np.abs(noise) < 1.96) == pytest.approx(0.95, abs=0.01)


def test_a_seed_repeats_its_release_and_shares_it_with_no_other():
    assert np.array_equal(release(1.0, 7), release(1.0, 7))
    assert not np.any(release(1.0, 7) == release(1.0, 8))
    assert not np.any(release(1.0, 7) == release(1.0, 7 + 2**64))  # all bits count
    assert not np.any(release(1.0, None) == release(1.0, None))


def test_the_noise_is_not_that_of_training():
    released = release(1.0, 7)
    for purpose in ("noise", "sampling", "views", "initial weights", "warm start"):
        stream = randomness.derive(7, purpose)
        words = [int(word) & (2**64 - 1) for word in stream]
        same = np.random.default_rng(np.random.SeedSequence(words)).normal(size=6)
        assert np.abs(released - same).min() > 1e-9
        assert np.abs(released - tf.random.stateless_normal([6], stream)).min() > 1e-9


@pytest.mark.parametrize(
    ("seed", "conditions"),
    [
        (None, {"class_counts"}),
        (3, {"class_counts", "chosen_seed"}),
        (randomness.Seed(3, randomness.SHARED), {"class_counts", "shared_seed"}),
        (randomness.Seed(3, randomness.SYSTEM), {"class_counts"}),
    ],
)
def test_a_seed_that_others_know_is_told_of(seed, conditions):
    plan = counts_plan(2, 1.0, 1e-5)
    _, spent = noised_counts(np.eye(2), plan, seed)
    assert spent.conditions == conditions
    assert spent.epsilon(1e-5) == plan.epsilon()


@pytest.mark.parametrize("noise", [5.0, 20.0])
def test_counts_and_training_are_composed(noise):
    training = PrivacyPlan(
        noise_multiplier=1.2,
        delta=1e-5,
        num_examples=1_000,
        expected_batch_size=50,
        updates=100,
    )
    plan = counts_plan(1_000, noise, 1e-5)
    assert plan.sampling_probability == 1 and plan.updates == 1
    ledger = Ledger.planned(training).joined(
        Ledger((Entry(run="counts", plan=plan, updates=1),))
    )
    expected = pld.PLDAccountant()
    expected.compose(dp_accounting.GaussianDpEvent(noise))
    expected.compose(
        dp_accounting.PoissonSampledDpEvent(0.05, dp_accounting.GaussianDpEvent(1.2)),
        100,
    )
    spent = ledger.epsilon(1e-5)
    assert spent == pytest.approx(expected.get_epsilon(1e-5), rel=2e-4)
    assert training.epsilon() < spent < training.epsilon() + plan.epsilon()
    again = Ledger.from_list(ledger.to_list(), "x")
    assert again.epsilon(1e-5) == spent


def test_arguments_that_make_no_sense_are_refused():
    plan = counts_plan(2, 1.0, 1e-5)
    with pytest.raises(DPMixError, match="is for num_examples=2, and per_record has 3"):
        noised_counts(np.eye(3), plan)
    with pytest.raises(DPMixError, match="seed must be"):
        noised_counts(np.eye(2), plan, -1)


def test_counts_without_records_of_their_own_are_refused():
    with pytest.raises(DPMixError, match="per_record must be"):
        clipped_counts([1, 2, 3])


def test_a_ledger_counts_every_release_and_the_statement_names_it(source):
    plan = plan_for(len(source), batch=20)
    model = DPMixModel(tiny_network(), plan=plan, views=ViewMaker())
    counted = counts_plan(len(source), 20.0, 1e-5, accountant="rdp")
    labels = np.eye(10)[source.arrays()[1]]
    spent = []
    for _ in range(2):
        model.account.absorb(noised_counts(labels, counted)[1])
        spent.append(model.epsilon)
    assert "after 0 updates" in model.statement()
    model.account.absorb(Ledger.planned(plan))
    assert 0 < spent[0] < spent[1] < model.epsilon
    said = model.statement()
    assert said.count("how many examples have each label, with Gaussian noise") == 2
    assert "standard deviation 20." in said and f"after {plan.updates} updates" in said
    assert "plans" not in said
    other = DPMixModel(tiny_network(), plan=plan, views=ViewMaker())
    assert history_warning(other.ledger.joined(model.ledger), plan) is None
