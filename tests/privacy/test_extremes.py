"""Calibration and clipping at the ends of their ranges."""

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


@pytest.mark.parametrize("clip", [1e-6, 0.3, 1.0, 1e4])
def test_no_clipped_record_is_longer_than_the_clip_norm(clip):
    """Of records just above and below it, and of very long ones."""
    mechanism = GaussianMechanism(plan_for(10, noise=0.0, clip=clip), seed=1)
    random = np.random.default_rng(0)
    for length in (1 - 1e-6, 1.0, 1 + 1e-7, 1 + 1e-6, 1.5, 1e3, 1e12):
        for size in (3, 1_000, 100_000):
            record = random.standard_normal(size)
            record *= length * clip / np.linalg.norm(record)
            parts = np.split(record.astype(np.float32), [size // 3])
            total, norms = mechanism.add(
                [tf.zeros(part.shape) for part in parts],
                [tf.constant(part[np.newaxis]) for part in parts],
                tf.constant([True]),
            )
            added = np.concatenate([part.numpy() for part in total]).astype(np.float64)
            assert np.isfinite(norms.numpy()).all()
            assert np.linalg.norm(added) <= clip * (1 + 1e-6)
            assert np.linalg.norm(added) >= min(1, length) * clip * (1 - 1e-5)


def test_gradients_too_long_to_measure_are_left_out_and_zero_stays_zero():
    mechanism = GaussianMechanism(plan_for(10, noise=0.0, clip=1.0), seed=1)
    records = tf.constant([[1e30, 1e30], [0.0, 0.0], [3.0, 4.0]])
    (total,), norms = mechanism.add(
        [tf.zeros([2])], [records], tf.constant([True, True, True])
    )
    np.testing.assert_allclose(total, [0.6, 0.8], rtol=1e-6)
    assert np.isinf(norms[0]) and norms[1] == 0 and norms[2] == 5
