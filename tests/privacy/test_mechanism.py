import numpy as np
import pytest
import tensorflow as tf
from scipy import stats

from dpmix_tf.errors import DPMixError
from dpmix_tf.privacy import randomness
from dpmix_tf.privacy.mechanism import GaussianMechanism
from tests.conftest import plan_for

SHAPES = [(300, 20), (4000,)]


def mechanism(seed=7, *, noise=1.5, clip=0.8, batch=50):
    return GaussianMechanism(plan_for(1000, noise=noise, clip=clip, batch=batch), seed)


def noise_of(update=0, **settings):
    """The noisy mean of nothing: noise alone."""
    zeros = [tf.zeros(shape) for shape in SHAPES]
    update = tf.constant(update, tf.int64)
    parts = mechanism(**settings).noisy_mean(zeros, update)
    return [part.numpy().ravel() for part in parts]


def test_noise_has_standard_deviation_sigma_times_clip_norm_over_batch_size():
    scale = 1.5 * 0.8 / 50
    for part in noise_of():
        assert stats.kstest(part, "norm", (0, scale)).pvalue > 1e-3
        for wrong in (2 / 3, 3 / 2):
            assert stats.kstest(part, "norm", (0, scale * wrong)).pvalue < 1e-6


def test_noise_differs_between_updates_variables_and_runs():
    first = noise_of(update=0)
    draws = [first[0][:4000], first[1], noise_of(update=1)[0][:4000]]
    draws += [noise_of(update=0, seed=8)[0][:4000], first[0][2000:6000]]
    for index, one in enumerate(draws):
        for other in draws[:index]:
            assert abs(np.corrcoef(one, other)[0, 1]) < 0.1 or one is other


def test_equal_seeds_and_updates_give_equal_noise():
    for one, other in zip(noise_of(update=5), noise_of(update=5), strict=True):
        np.testing.assert_array_equal(one, other)


def test_noise_is_added_to_the_sum_before_it_is_divided():
    total = [tf.fill(shape, 10.0) for shape in SHAPES]
    noised = mechanism().noisy_mean(total, tf.constant(0, tf.int64))
    for part, noise in zip(noised, noise_of(), strict=True):
        np.testing.assert_allclose(part.numpy().ravel(), 10 / 50 + noise, atol=1e-6)


def test_clipping_shortens_long_records_and_leaves_short_ones():
    rule = mechanism(clip=0.8)
    record = [tf.constant([3.0, 0.0]), tf.constant([[4.0]])]
    clipped, norm = rule.clip(record)
    assert float(norm) == pytest.approx(5.0)
    np.testing.assert_allclose(clipped[0], [0.48, 0.0], rtol=1e-6)
    np.testing.assert_allclose(clipped[1], [[0.64]], rtol=1e-6)
    short, _ = rule.clip([part / 100 for part in record])
    np.testing.assert_allclose(short[0], record[0] / 100, rtol=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e30])
def test_a_record_without_a_finite_norm_counts_as_zero(bad):
    clipped, norm = mechanism().clip([tf.constant([1.0, bad]), tf.constant([1.0])])
    assert not np.isfinite(norm)
    for part in clipped:
        np.testing.assert_array_equal(part, np.zeros_like(part))


def test_no_two_streams_of_a_seed_are_alike():
    streams = [
        randomness.derive(5, name) for name in ("noise", "views", "sampling", "x")
    ]
    streams.append(randomness.derive(6, "noise"))
    assert len({tuple(stream) for stream in streams}) == len(streams)
    folded = {
        tuple(randomness.fold_in(tf.constant(streams[0]), number).numpy())
        for number in range(100)
    }
    assert len(folded) == 100


@pytest.mark.parametrize("bad", [-1, 2**128, 1.5, "7", True])
def test_seeds_that_are_not_128_bit_ints_are_refused(bad):
    with pytest.raises(DPMixError, match="seed must be"):
        randomness.derive(bad, "noise")


def test_fresh_seeds_are_fresh():
    assert len({randomness.fresh_seed() for _ in range(10)}) == 10


def test_the_seed_is_not_written_into_graphs():
    rule = mechanism(seed=123456789)
    secret = rule._stream.seed.numpy()

    @tf.function
    def step():
        return rule.noisy_mean([tf.zeros([3])], tf.constant(0, tf.int64))

    graph = step.get_concrete_function().graph.as_graph_def().SerializeToString()
    for half in secret:
        assert int(half).to_bytes(8, "little", signed=True) not in graph
