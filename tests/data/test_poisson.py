import tracemalloc

import numpy as np
import pytest
import tensorflow as tf
from scipy import stats

from dpmix_tf import views
from dpmix_tf.data import ArraySource, PoissonBatches
from dpmix_tf.errors import DPMixError
from dpmix_tf.training import DPMixModel
from tests.conftest import plan_for, tiny_network


def numbered(count):
    """A source whose label is the example's own index."""
    images = np.zeros((count, 2, 2, 1), np.uint8)
    images[:, 0, 0, 0] = np.arange(count) % 256
    return ArraySource(images, np.arange(count))


UPDATES = 4000


@pytest.fixture(scope="module")
def draws():
    """[updates, examples] of zeros and ones: who joined which batch."""
    count, batch = 40, 6
    batches = PoissonBatches(
        numbered(count), plan_for(count, batch=batch, updates=UPDATES), seed=5
    )
    joined = np.zeros((UPDATES, count))
    for update in range(UPDATES):
        joined[update, batches.indices(update)] += 1
    return joined, batch / count


def test_no_example_is_drawn_twice_in_a_batch(draws):
    assert draws[0].max() == 1


def test_batch_sizes_are_binomial(draws):
    joined, q = draws
    sizes = joined.sum(1)
    count = joined.shape[1]
    variance = count * q * (1 - q)
    assert abs(sizes.mean() - count * q) < 4 * np.sqrt(variance / UPDATES)
    assert abs(sizes.var() / variance - 1) < 4 * np.sqrt(2 / UPDATES)


def test_every_example_joins_as_often_whatever_its_position(draws):
    joined, q = draws
    spread = np.sqrt(q * (1 - q) / UPDATES)
    assert np.all(np.abs(joined.mean(0) - q) < 4 * spread)


def test_pairs_meet_as_often_as_independent_coins(draws):
    joined, q = draws
    together = (joined.T @ joined / UPDATES)[~np.eye(joined.shape[1], dtype=bool)]
    spread = np.sqrt(q**2 * (1 - q**2) / UPDATES)
    # 1,560 pairs: the largest of so many may reach beyond 4, the bulk may not.
    assert np.mean(np.abs(together - q**2) > 4 * spread) < 0.002
    assert np.abs(together - q**2).max() < 5.5 * spread


def test_neighbouring_updates_are_independent(draws):
    joined, q = draws
    both = np.mean(joined[1:] * joined[:-1])
    assert abs(both - q**2) < 4 * np.sqrt(q**2 / joined.size)


def test_elements_carry_the_drawn_examples_and_their_ids():
    source = numbered(30)
    batches = PoissonBatches(source, plan_for(30, batch=5, updates=20), seed=1)
    seen = list(batches)
    assert len(seen) == len(batches) == 20
    for update, batch in enumerate(seen):
        np.testing.assert_array_equal(batch.ids, batches.indices(update))
        np.testing.assert_array_equal(batch.labels, batch.ids)
        np.testing.assert_array_equal(batch.images[:, 0, 0, 0], batch.ids)


def test_the_batch_axis_is_free_and_empty_batches_come():
    batches = PoissonBatches(numbered(30), plan_for(30, batch=1, updates=30), seed=1)
    spec = batches.dataset().element_spec
    assert spec.images == tf.TensorSpec([None, 2, 2, 1], tf.uint8)
    assert [part.shape[0] for part in spec[:3]] == [None] * 3
    assert spec.update == tf.TensorSpec([], tf.int64)
    sizes = [len(batch.labels) for batch in batches]
    assert 0 in sizes and max(sizes) > 1


def test_starting_later_draws_what_an_uninterrupted_run_would():
    plan = plan_for(50, updates=12)
    whole = PoissonBatches(numbered(50), plan, seed=9)
    for start in (0, 5, 11):
        late = PoissonBatches(numbered(50), plan, seed=9, start=start)
        assert len(late) == 12 - start
        for expected, batch in zip(list(whole)[start:], late, strict=True):
            np.testing.assert_array_equal(batch.ids, expected.ids)
    again = whole.starting_at(5)
    np.testing.assert_array_equal(next(iter(again)).ids, whole.indices(5))


def test_seeds_matter_and_the_default_is_fresh():
    plan = plan_for(100, batch=50)
    draws = [
        PoissonBatches(numbered(100), plan, seed=seed).indices(0).tobytes()
        for seed in (1, 2, None, None)
    ]
    assert len(set(draws)) == 4


@pytest.mark.parametrize("seed", [-1, 2**128, 2**128 + 1, 1.0, "secret word"])
def test_a_seed_that_is_none_is_refused_and_not_quoted(seed):
    plan = plan_for(20)
    for use in (
        lambda: PoissonBatches(numbered(20), plan, seed=seed),
        lambda: PoissonBatches(numbered(20), plan).starting_at(1, seed=seed),
        lambda: DPMixModel(
            tiny_network(), plan=plan, views=views.no_augmentation(), seed=seed
        ),
    ):
        with pytest.raises(DPMixError, match="seed must be") as error:
            use()
        assert str(seed) not in str(error.value)


def test_full_batches_hold_everyone():
    batches = PoissonBatches(numbered(20), plan_for(20, batch=20))
    np.testing.assert_array_equal(batches.indices(3), np.arange(20))


def test_a_plan_for_another_data_set_is_refused():
    with pytest.raises(DPMixError, match="num_examples=30"):
        PoissonBatches(numbered(20), plan_for(30))
    with pytest.raises(DPMixError, match="start must be"):
        PoissonBatches(numbered(20), plan_for(20, updates=10), start=11)


def test_ten_million_examples_are_not_tossed_coins_for():
    class Many:
        """Examples that nobody reads."""

        record = "example"

        def __len__(self):
            return 10_000_000

    batches = PoissonBatches(Many(), plan_for(10_000_000, batch=4096), seed=1)
    batches.indices(0)
    tracemalloc.start()
    drawn = batches.indices(1)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1_000_000  # bytes; a number for every example would be 80 million
    assert abs(len(drawn) - 4096) < 6 * 4096**0.5
    # Uniform over the whole range.
    assert stats.kstest(drawn / 10_000_000, "uniform").pvalue > 1e-4
