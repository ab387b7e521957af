"""Calibration and clipping at the ends of their ranges."""

import functools

import hypothesis
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import strategies as st

from dpmix_tf.errors import DPMixError
from dpmix_tf.privacy import accounting
from dpmix_tf.privacy.mechanism import GaussianMechanism
from tests.conftest import plan_for


def calibrated(target, accountant, **sampling):
    noise = accounting.noise_multiplier_for(
        target_epsilon=target, accountant=accountant, **sampling
    )
    spent = accounting.epsilon(
        noise_multiplier=noise, accountant=accountant, **sampling
    )
    assert 0.98 * target <= spent <= target
    return noise


@pytest.mark.slow
@pytest.mark.parametrize(
    "probability, updates, epsilon, delta",
    [
        (1.0, 1, 1.0, 1e-5),
        (1.0, 1, 0.01, 1e-5),
        (1.0, 1_000, 1.0, 1e-5),
        (1.0, 1, 100.0, 1e-12),
        (1e-6, 1, 0.5, 1e-12),
        (1e-6, 1_000, 1.0, 1e-9),
        (0.01, 10**6, 1.0, 1e-5),
        (0.5, 10**6, 8.0, 1e-5),
        (0.1, 1_000, 0.01, 1e-6),
        (0.1, 1_000, 100.0, 1e-5),
        (0.08, 2_400, 8.0, 1e-12),
    ],
)
def test_calibration_converges_and_pld_asks_for_no_more_than_rdp(
    probability, updates, epsilon, delta
):
    sampling = {
        "sampling_probability": probability,
        "updates": updates,
        "delta": delta,
    }
    tight, loose = (calibrated(epsilon, name, **sampling) for name in ("pld", "rdp"))
    assert 0.3 * loose <= tight <= loose * 1.0002


def test_what_renyi_divergences_cannot_express_says_so_and_pld_can():
    sampling = {"sampling_probability": 0.01, "updates": 1, "delta": 1e-12}
    with pytest.raises(DPMixError, match="other accountant"):
        calibrated(0.01, "rdp", **sampling)
    calibrated(0.01, "pld", **sampling)


@hypothesis.settings(max_examples=25, deadline=None)
@hypothesis.given(
    st.floats(1e-4, 1.0),
    st.integers(1, 100_000),
    st.floats(0.05, 50.0),
    st.floats(1e-10, 1e-3),
)
def test_the_noise_is_never_too_small(probability, updates, epsilon, delta):
    sampling = {
        "sampling_probability": probability,
        "updates": updates,
        "delta": delta,
    }
    noise = accounting.noise_multiplier_for(
        target_epsilon=epsilon, accountant="rdp", **sampling
    )
    spent = accounting.epsilon(noise_multiplier=noise, accountant="rdp", **sampling)
    assert spent <= epsilon


@functools.cache
def adding(clip, jit_compile):
    mechanism = GaussianMechanism(plan_for(10, noise=0.0, clip=clip), seed=1)
    return tf.function(mechanism.add, jit_compile=jit_compile)


def added(record, clip, *, jit_compile=False):
    """What is left of one record, a float32 vector, in float64; its measured norm."""
    add = adding(clip, jit_compile)
    (total,), norms = add(
        [tf.zeros(record.shape)],
        [tf.constant(record[np.newaxis])],
        tf.constant([True]),
    )
    return total.numpy().astype(np.float64), norms.numpy()[0]


@pytest.mark.parametrize("clip", [1e-10, 1e-6, 0.3, 1.0, 1e4, 1e10])
@pytest.mark.parametrize("jit_compile", [False, True])
def test_no_clipped_record_is_longer_than_the_clip_norm(clip, jit_compile):
    """Of records just above and below it, and of very long ones."""
    random = np.random.default_rng(0)
    for size in (3, 1_000, 100_000):
        direction = random.standard_normal(size)
        direction /= np.linalg.norm(direction)
        for length in (1 - 1e-6, 1.0, 1 + 1e-7, 1 + 1e-6, 1.5, 1e3, 1e12, 1e25):
            record = (direction * length * clip).astype(np.float32)
            left, norm = added(record, clip, jit_compile=jit_compile)
            assert norm == pytest.approx(length * clip, rel=1e-6)
            assert np.linalg.norm(left) <= clip
            assert np.linalg.norm(left) >= min(1, length) * clip * (1 - 1e-6)


@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize("shape", ["normal", "equal", "growing"])
def test_twenty_million_weights_are_clipped_as_exactly_as_three(shape, jit_compile):
    size = 20_000_000
    record = {
        "normal": lambda: np.random.default_rng(0).standard_normal(size),
        "equal": lambda: np.full(size, 1.0003),
        "growing": lambda: np.linspace(1e-4, 1.0, size),
    }[shape]().astype(np.float32)
    left, _ = added(record, 1.0, jit_compile=jit_compile)
    assert 1 - 1e-6 <= np.linalg.norm(left) <= 1.0


def test_the_bound_holds_where_graphs_are_rewritten_to_lower_precision():
    options = tf.config.optimizer.get_experimental_options()
    tf.config.optimizer.set_experimental_options(
        {"auto_mixed_precision_onednn_bfloat16": True}
    )
    try:
        record = np.random.default_rng(0).standard_normal(10_000).astype(np.float32)
        alone, _ = added(record, 1.5)
    finally:
        tf.config.optimizer.set_experimental_options(
            {"auto_mixed_precision_onednn_bfloat16": False, **options}
        )
    assert 1.5 - 1e-6 <= np.linalg.norm(alone) <= 1.5


def test_where_matrix_products_may_be_rounded_there_are_none(monkeypatch):
    """TensorFloat-32 is on by default on GPUs, and takes ten bits of each factor."""
    mechanism = GaussianMechanism(plan_for(10, noise=0.0, clip=1.0), seed=1)
    shapes = [tf.TensorSpec([3, 5, 2]), tf.TensorSpec([3, 4])]
    arguments = (
        [tf.TensorSpec(shape.shape[1:]) for shape in shapes],
        shapes,
        tf.TensorSpec([3], tf.bool),
    )

    def products():
        graph = tf.function(mechanism.add).get_concrete_function(*arguments).graph
        return [op for op in graph.get_operations() if "MatMul" in op.type]

    assert len(products()) == len(shapes)  # of the scaled sums; the norms take none
    gpu = tf.config.PhysicalDevice("/physical_device:GPU:0", "GPU")
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda *_: [gpu])
    assert not products()
    records = np.random.default_rng(0).standard_normal((3, 40)).astype(np.float32)
    (total,), norms = mechanism.add(
        [tf.zeros([40])], [tf.constant(records)], tf.constant([True, True, False])
    )
    expected = records[:2] / np.linalg.norm(records[:2], axis=1, keepdims=True)
    np.testing.assert_allclose(total, expected.sum(0), atol=1e-6)


@pytest.mark.parametrize("clip", [0.0, 1e-21, 9e-11, 2e10, 1e38, float("inf")])
def test_clip_norms_near_the_ends_of_float32_are_refused(clip):
    with pytest.raises(DPMixError, match="clip_norm must be .*at least 1e-10"):
        plan_for(10, clip=clip)


def test_gradients_too_long_to_measure_are_left_out_and_zero_stays_zero():
    mechanism = GaussianMechanism(plan_for(10, noise=0.0, clip=1.0), seed=1)
    records = tf.constant([[3e38, 3e38], [0.0, 0.0], [3.0, 4.0], [3e38, 0.0]])
    (total,), norms = mechanism.add([tf.zeros([2])], [records], tf.fill([4], True))
    # The last one's norm is known; but its scale is beyond float32's normal numbers.
    np.testing.assert_allclose(total, [0.6, 0.8], rtol=1e-6)
    np.testing.assert_allclose(norms, [np.inf, 0, 5, 3e38], rtol=1e-6)
