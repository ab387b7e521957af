"""Filters of noisy gradients."""

import keras
import numpy as np
import pytest

from dpmix_tf import views
from dpmix_tf.data import ArraySource, PoissonBatches
from dpmix_tf.errors import DPMixError
from dpmix_tf.training import DPMixModel, KalmanOptimizer, LowPassOptimizer
from dpmix_tf.training.config import default_config
from dpmix_tf.training.optimizers import make_optimizer
from tests.conftest import plan_for, tiny_network


class Watched(keras.optimizers.SGD):
    """Remembers the last gradients it was given."""

    def __init__(self, learning_rate):
        super().__init__(learning_rate)
        self.errors = []

    def apply(self, grads, trainable_variables=None):
        self.given = [np.asarray(grad) for grad in grads]
        super().apply(grads, trainable_variables)


FILTERS = {
    "low_pass": lambda inner: LowPassOptimizer(inner, 0.9),
    "kalman": lambda inner: KalmanOptimizer(inner, 0.2),
    "none": lambda inner: inner,
}


def descend(kind, inner, seed, updates=300):
    """On a noisy quadratic: mean square of the weights, whose best is 0, once near."""
    random = np.random.default_rng(seed)
    curvature = np.linspace(0.2, 1.0, 50).astype(np.float32)
    weights = keras.Variable(np.full(50, 3.0, np.float32))
    optimizer = FILTERS[kind](inner)
    optimizer.build([weights])
    squares = []
    for _ in range(updates):
        gradient = curvature * weights.numpy()
        noise = random.normal(0, 2.0, 50).astype(np.float32)
        optimizer.apply([gradient + noise], [weights])
        squares.append(np.mean(weights.numpy() ** 2))
        if isinstance(inner, Watched):
            inner.errors.append(np.mean((inner.given[0] - gradient) ** 2))
    return np.mean(squares[updates // 3 :])


@pytest.mark.parametrize("kind", ["low_pass", "kalman"])
def test_it_reduces_the_error_on_a_noisy_quadratic(kind):
    """Of where Adam ends; plain SGD averages as well by itself."""
    filtered, plain = (
        np.mean([descend(k, keras.optimizers.Adam(0.05), seed) for seed in range(5)])
        for k in (kind, "none")
    )
    assert filtered < 0.95 * plain


@pytest.mark.parametrize("kind", ["low_pass", "kalman"])
def test_it_reduces_the_error_of_the_gradients(kind):
    smooth, rough = Watched(0.05), Watched(0.05)
    descend(kind, smooth, 0)
    descend("none", rough, 0)
    assert np.mean(rough.errors) == pytest.approx(4.0, rel=0.1)
    assert np.mean(smooth.errors[100:]) < 0.5 * np.mean(rough.errors)


def test_the_kalman_filter_is_the_papers():
    """Gradients of x**2 / 2 at the point ahead, by hand."""
    weights = keras.Variable(np.full(1, 2.0, np.float32))
    gain, rate, noise = 0.4, 0.25, [0.3, -0.2, 0.5, 0.1]
    optimizer = KalmanOptimizer(keras.optimizers.SGD(rate), gain)
    optimizer.build([weights])
    weights.assign([3.0])  # loaded after the optimizer was built
    x = ahead = 3.0
    filtered = None
    for step in noise:
        gradient = ahead + step
        if filtered is None:
            filtered = gradient
        filtered = (1 - gain) * filtered + gain * gradient
        before, x = x, x - rate * filtered
        ahead = x + (1 - gain) / gain * (x - before)
        optimizer.apply([weights.numpy() + np.float32(step)], [weights])
        np.testing.assert_allclose(weights, [ahead], rtol=1e-5)
        np.testing.assert_allclose(optimizer._steps[0], [x - before], rtol=1e-4)
    assert optimizer.iterations == optimizer.inner.iterations == 4


def test_a_gain_of_one_is_the_inner_optimizer_alone():
    alone, filtered = (keras.Variable(np.ones(3, np.float32)) for _ in range(2))
    plain = keras.optimizers.Adam(0.1)
    wrapped = KalmanOptimizer(keras.optimizers.Adam(0.1), 1.0)
    random = np.random.default_rng(0)
    for optimizer, weights in ((plain, alone), (wrapped, filtered)):
        optimizer.build([weights])
    for _ in range(5):
        gradient = random.normal(size=3).astype(np.float32)
        plain.apply([gradient], [alone])
        wrapped.apply([gradient], [filtered])
        np.testing.assert_allclose(filtered, alone, rtol=1e-6)


def test_the_filter_is_the_papers():
    weights = keras.Variable(np.zeros(1, np.float32))
    optimizer = LowPassOptimizer(keras.optimizers.SGD(1.0), 0.5)
    optimizer.build([weights])
    gradients = [4.0, 8.0, 0.0, 2.0]
    filtered = weight = last = moved = 0.0
    for step, gradient in enumerate(gradients):
        filtered = 0.5 * filtered + 0.25 * (gradient + last)
        weight = 0.5 * weight + 0.25 * (1 + (step > 0))
        last = gradient
        moved -= filtered / weight
        optimizer.apply([np.float32([gradient])], [weights])
        assert weights.numpy()[0] == pytest.approx(moved, rel=1e-5)
    assert optimizer.iterations == optimizer.inner.iterations == 4


def test_a_constant_gradient_passes_unchanged():
    weights = keras.Variable(np.zeros(3, np.float32))
    optimizer = LowPassOptimizer(keras.optimizers.SGD(0.5), 0.9)
    optimizer.build([weights])
    for step in range(1, 6):
        optimizer.apply([np.ones(3, np.float32)], [weights])
        np.testing.assert_allclose(weights, -0.5 * step, rtol=1e-5)


@pytest.mark.parametrize("kind", [LowPassOptimizer, KalmanOptimizer])
def test_its_state_is_saved_with_the_model(kind, tmp_path):
    random = np.random.default_rng(0)
    source = ArraySource(
        random.integers(0, 256, (40, 8, 8, 1), np.uint8), random.integers(0, 10, 40)
    )
    model = DPMixModel(
        tiny_network(), plan=plan_for(40), views=views.no_augmentation(), seed=1
    )
    model.compile(kind(keras.optimizers.Adam(0.01), 0.8))
    model.fit(PoissonBatches(source, model.plan), steps_per_epoch=3, verbose=0)
    assert len(model.state()["optimizer"]) > 4 * len(model.network.trainable_variables)
    model.save(tmp_path / "x.keras")
    again = keras.models.load_model(tmp_path / "x.keras")
    assert again.optimizer.get_config() == model.optimizer.get_config()
    for one, other in zip(
        model.state()["optimizer"], again.state()["optimizer"], strict=True
    ):
        np.testing.assert_array_equal(one, other)
    assert all(np.any(np.asarray(v)) for v in again.optimizer._filtered)


def test_what_would_break_the_count_is_refused_inside_too():
    model = DPMixModel(tiny_network(), plan=plan_for(40), views=views.no_augmentation())
    accumulating = keras.optimizers.SGD(0.1, gradient_accumulation_steps=2)
    with pytest.raises(DPMixError, match="gradient_accumulation_steps"):
        model.compile(LowPassOptimizer(accumulating))
    with pytest.raises(DPMixError, match="memory must be"):
        LowPassOptimizer(keras.optimizers.SGD(0.1), 1.0)
    with pytest.raises(DPMixError, match="gain must be"):
        KalmanOptimizer(keras.optimizers.SGD(0.1), 0.0)
    config = default_config()
    config.optimizer.low_pass, config.optimizer.kalman_gain = 0.9, 0.5
    with pytest.raises(DPMixError, match="Give only one of"):
        make_optimizer(config)
    config.optimizer.low_pass = None
    assert make_optimizer(config).gain == 0.5
