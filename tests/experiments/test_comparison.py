import numpy as np
import pytest

from dpmix_tf.experiments.comparison import paired_difference, standard_error
from dpmix_tf.privacy import PrivacyPlan, accounting
from dpmix_tf.privacy.selection import Choice


def test_the_standard_error_is_the_means():
    assert standard_error([1.0, 2.0, 3.0]) == pytest.approx(1 / 3**0.5)
    assert standard_error([1.0]) is None


def test_differences_are_of_pairs_and_say_whether_they_are_resolved():
    noise = np.random.default_rng(0).normal(0, 5, 6)
    clear = paired_difference(50 + noise + [1, 1.1, 0.9, 1, 1.2, 0.8], 50 + noise)
    assert clear.mean == pytest.approx(1.0)
    assert 0.5 < clear.low < 1.0 < clear.high < 1.5  # the seeds' noise is gone
    assert clear.resolved and clear.sentence("a", "b").endswith(": significant.")
    assert "a is 1.00 points above b" in clear.sentence("a", "b")
    unclear = paired_difference([1, -1, 0.5, -1.0], [0, 0, 0, 0])
    assert not unclear.resolved
    assert unclear.sentence("a", "b").endswith(": not significant.")
    assert "below" in unclear.sentence("a", "b")
    alone = paired_difference([2.0], [1.0])
    assert alone.low is None and not alone.resolved
    assert "nothing about chance" in alone.sentence("a", "b")
    two = paired_difference([0.10, 0.15], [0.0, 0.0])
    assert two.low > 0 and not two.resolved  # which chance alone does half the time
    same = paired_difference([1.0, 1.0], [0.5, 0.5])
    assert (same.low, same.high) == (0.5, 0.5)


def test_intervals_hold_the_truth_as_often_as_they_say():
    """With plain percentiles it would be about 84 times in a hundred."""
    random = np.random.default_rng(1)
    zeros = np.zeros(5)
    intervals = [paired_difference(random.normal(size=5), zeros) for _ in range(300)]
    assert np.mean([i.low <= 0 <= i.high for i in intervals]) > 0.9
    for count in (2, 3, 5):
        called = [
            paired_difference(random.normal(size=count), np.zeros(count)).resolved
            for _ in range(200)
        ]
        assert np.mean(called) < 0.1


def test_choosing_the_best_of_several_trainings_costs_more_than_one():
    plan = PrivacyPlan.for_epsilon(
        epsilon=4.0,
        delta=1e-5,
        num_examples=1000,
        expected_batch_size=100,
        updates=50,
        accountant="rdp",
    )

    def cost(trials):
        part = plan.part()._replace(choice=Choice(trials, "geometric", None))
        return accounting.composed_epsilon((part,), plan.delta, "rdp")

    assert plan.epsilon() < cost(2) < cost(3) < cost(30) < 4 * plan.epsilon()
