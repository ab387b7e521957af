import numpy as np
import pytest
import tensorflow as tf
from scipy import stats

from dpmix_tf.privacy import randomness
from dpmix_tf.views import mixers

DRAWS = randomness.uniform(tf.constant([[3, 4]], tf.int64), 100_000 * mixers.BETA_DRAWS)
DRAWS = tf.reshape(DRAWS, [100_000, mixers.BETA_DRAWS])


@pytest.mark.parametrize("alpha", [0.05, 0.2, 1.0, 8.0])
def test_lambda_follows_the_beta_law(alpha):
    draws = mixers.beta(DRAWS, alpha).numpy()
    assert np.all(np.isfinite(draws)) and draws.min() >= 0 and draws.max() <= 1
    # Near 1, floats are too coarse to compare laws; near 0 they are not, and the law is
    # symmetric. Below 1e-30 sigmoid's result underflows.
    assert np.mean(draws < 0.5) == pytest.approx(0.5, abs=0.01)
    low = draws[(draws > 1e-30) & (draws < 0.5)]
    law = stats.beta(alpha, alpha)
    least, most = law.cdf(1e-30), law.cdf(0.5)
    test = stats.kstest(low, lambda x: (law.cdf(x) - least) / (most - least))
    assert test.pvalue > 1e-3
    assert draws.var() == pytest.approx(law.var(), rel=0.02)


def test_a_plain_ratio_of_gammas_would_blend_evenly_where_it_underflows():
    one, other = (
        tf.random.stateless_gamma([100_000], [3, stream], alpha=0.005)
        for stream in (0, 1)
    )
    assert np.mean(one / (one + other) == 0.5) > 0.1
    assert np.mean(np.abs(mixers.beta(DRAWS, 0.005) - 0.5) < 0.01) < 0.01


def test_mixup_is_the_lambda_blend():
    first, second = tf.ones([3, 2, 2, 1]), tf.zeros([3, 2, 2, 1])
    blended, weight = mixers.mixup(first, second, tf.constant([0.0, 0.25, 1.0]))
    np.testing.assert_allclose(blended[:, 0, 0, 0], [0, 0.25, 1])
    np.testing.assert_allclose(weight, [0, 0.25, 1])
