import numpy as np
import pytest
import tensorflow as tf
from scipy import stats

from dpmix_tf.errors import DPMixError
from dpmix_tf.privacy import randomness
from dpmix_tf.privacy._tensorflow_privacy import GaussianSumQuery
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


def add(rule, *records, counted=None):
    """Adds records, each a list of tensors, to a sum of nothing."""
    stacked = [tf.stack(parts) for parts in zip(*records, strict=True)]
    counted = [True] * len(records) if counted is None else counted
    return rule.add(rule.zero(list(records[0])), stacked, tf.constant(counted))


def test_clipping_shortens_long_records_and_leaves_short_ones():
    rule = mechanism(clip=0.8)
    record = [tf.constant([3.0, 0.0]), tf.constant([[4.0]])]
    total, norms = add(rule, record)
    np.testing.assert_allclose(norms, [5.0], rtol=1e-6)
    np.testing.assert_allclose(total[0], [0.48, 0.0], rtol=1e-6)
    np.testing.assert_allclose(total[1], [[0.64]], rtol=1e-6)
    total, _ = add(rule, [part / 100 for part in record])
    np.testing.assert_allclose(total[0], record[0] / 100, rtol=1e-6)


def test_records_side_by_side_are_clipped_and_summed_as_tensorflow_privacy_does():
    generator = np.random.default_rng(0)
    records = [
        [
            tf.constant(scale * generator.normal(size=shape), tf.float32)
            for shape in SHAPES
        ]
        for scale in (1e-3, 0.0, 1.0, 1e4, 1e-2)
    ]
    query = GaussianSumQuery(l2_norm_clip=0.8, stddev=1.0)
    params = query.derive_sample_params(query.initial_global_state())
    expected = query.initial_sample_state(records[0])
    for record in records:
        expected = query.accumulate_record(params, expected, record)
    total, _ = add(mechanism(clip=0.8), *records)
    for ours, theirs in zip(total, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-7)


def test_only_counted_records_are_added():
    records = [[tf.fill(shape, value) for shape in SHAPES] for value in (1e-5, 2e-5)]
    total, _ = add(mechanism(), *records, counted=[False, True])
    for part, alone in zip(total, records[1], strict=True):
        np.testing.assert_allclose(part, alone, rtol=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_record_without_a_finite_norm_counts_as_zero(bad):
    good = [tf.constant([0.1, 0.2]), tf.constant([0.3])]
    total, norms = add(mechanism(), [tf.constant([1.0, bad]), tf.constant([1.0])], good)
    np.testing.assert_array_equal(np.isfinite(norms), [False, True])
    for part, alone in zip(total, good, strict=True):
        np.testing.assert_allclose(part, alone, rtol=1e-6)


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
