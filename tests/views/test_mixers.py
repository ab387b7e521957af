import hypothesis
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import strategies as st
from scipy import stats

from dpmix_tf.errors import DPMixError
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


SIZE = (12, 16)
MASKING = ["cutmix", "resizemix", "fmix", "maskmix"]
ANY = [*mixers.MIXERS, "mixup:0.25,cutmix:0.25,fmix:0.5"]


def blend(name, first, second, lam, seed=0):
    """The mixer's views and weights for pairs [n,H,W,C]."""
    mixer = mixers.parse_mixer(name)
    lam = tf.constant(lam, tf.float32)
    draws = tf.random.stateless_uniform([*lam.shape, mixer.draws], [seed, 5])
    views, weight = tf.function(mixer.blend)(
        tf.constant(first, tf.float32), tf.constant(second, tf.float32), lam, draws
    )
    assert views.shape == first.shape and weight.shape == lam.shape
    return views.numpy(), weight.numpy()


@pytest.mark.parametrize("name", ANY)
@hypothesis.settings(deadline=None, max_examples=25)
@hypothesis.given(
    lam=st.lists(st.floats(0, 1, width=32), min_size=1, max_size=4),
    first=st.floats(0, 1, width=32),
    second=st.floats(0, 1, width=32),
    seed=st.integers(0, 1000),
)
def test_constant_images_blend_by_their_weight(name, lam, first, second, seed):
    """In range; and the weight is the share of the first that is truly there."""
    shape = (len(lam), *SIZE, 3)
    views, weight = blend(
        name, np.full(shape, first), np.full(shape, second), lam, seed
    )
    low, high = sorted([first, second])
    assert low - 1e-6 <= views.min() and views.max() <= high + 1e-6
    expected = weight * first + (1 - weight) * second
    np.testing.assert_allclose(views.mean((1, 2, 3)), expected, atol=1e-5)
    assert np.all((weight >= 0) & (weight <= 1))


@pytest.mark.parametrize("name", MASKING)
def test_weights_are_counts_of_pixels(name):
    shape = (500, *SIZE, 1)
    lam = np.linspace(0, 1, 500)
    views, weight = blend(name, np.ones(shape), np.zeros(shape), lam)
    np.testing.assert_allclose(views.mean((1, 2, 3)), weight, atol=1e-6)
    apart = weight - lam
    if name == "cutmix":  # boxes reach over the border
        assert apart.min() > -0.07 and 0.02 < apart.mean() < 0.3
    else:
        assert np.abs(apart).max() <= {"fmix": 0.004, "maskmix": 0.032}.get(name, 0.07)


@pytest.mark.parametrize("name", [n for n in ANY if n != "resizemix"])
def test_identical_partners_give_the_identical_view(name):
    images = np.random.default_rng(0).random((40, *SIZE, 3), dtype=np.float32)
    views, _ = blend(name, images, images, np.linspace(0, 1, 40))
    np.testing.assert_allclose(views, images, atol=1e-6)


def test_resizemix_pastes_the_whole_of_the_second():
    """Shrunk to a quarter: each pixel stands for four, wherever it lies."""
    second = np.zeros((60, 16, 16, 1), np.float32)
    second[:, :8, 8:] = 1.0
    views, weight = blend("resizemix", -np.ones_like(second), second, [0.75] * 60)
    np.testing.assert_allclose(weight, 0.75)
    corners = set()
    for view in views[..., 0]:
        rows, columns = np.nonzero(view >= 0)
        box = view[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
        assert box.shape == (8, 8)
        assert box[:3, 5:].min() == 1.0 and box[5:].max() == 0 and box[:, :3].max() == 0
        corners.add((int(rows.min()), int(columns.min())))
    assert len(corners) > 20 and max(max(corners)) <= 8
    whole, weight = blend("resizemix", -np.ones_like(second), second, [0.0] * 60)
    np.testing.assert_allclose(whole, second, atol=1e-6)


def test_masks_are_what_they_are_called():
    shape = (200, 32, 32, 1)
    half = [0.5] * 200

    def edges(name):
        views, _ = blend(name, np.ones(shape), np.zeros(shape), half)
        return np.mean(views[:, 1:] != views[:, :-1])

    # A box has two horizontal edges a column, a grid at most three, a smooth field few;
    # independent pixels would differ half of the time.
    assert all(0.005 < edges(name) < 0.1 for name in MASKING)
    squares, _ = blend("maskmix", np.ones(shape), np.zeros(shape), half)
    parts = (
        squares.reshape(200, 4, 8, 4, 8).transpose(0, 1, 3, 2, 4).reshape(200, 16, 64)
    )
    assert np.all(parts.std(-1) == 0) and np.all(parts[..., 0].sum(-1) == 8)
    # Every place belongs to either partner as often.
    for name in ("cutmix", "fmix", "maskmix"):
        views, weight = blend(name, np.ones(shape), np.zeros(shape), half)
        assert np.abs(views.mean(0) - weight.mean()).max() < 0.35


def test_a_choice_takes_each_as_often_as_asked():
    shape = (4000, 4, 4, 1)
    views, weight = blend(
        "mixup:0.25,maskmix:0.75", np.ones(shape), np.zeros(shape), [0.3] * 4000
    )
    blended = np.isclose(views[:, 0, 0, 0], 0.3)
    assert blended.mean() == pytest.approx(0.25, abs=0.03)
    np.testing.assert_allclose(weight[blended], 0.3)
    np.testing.assert_allclose(weight[~blended], 5 / 16)


@pytest.mark.parametrize(
    "text",
    ["", "cutout", "mixup:0.5", "mixup:0.5,mixup:0.5", "mixup:x", "mixup:2,cutmix:-1"],
)
def test_unknown_mixers_are_refused(text):
    with pytest.raises(DPMixError, match="mixer must be one of mixup"):
        mixers.parse_mixer(text)
