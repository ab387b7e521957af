"""The low-pass filter of noisy gradients."""

import keras
import numpy as np
import pytest

from dpmix_tf import views
from dpmix_tf.data import ArraySource, PoissonBatches
from dpmix_tf.errors import DPMixError
from dpmix_tf.training import DPMixModel, LowPassOptimizer
from tests.conftest import plan_for, tiny_network


class Watched(keras.optimizers.SGD):
    """Remembers the last gradients it was given."""

    def apply(self, grads, trainable_variables=None):
        self.given = [np.asarray(grad) for grad in grads]
        super().apply(grads, trainable_variables)


def errors(memory, seed, updates=300):
    """Of the gradients of a noisy quadratic that are followed, and of its end."""
    random = np.random.default_rng(seed)
    curvature = np.linspace(0.2, 1.0, 50).astype(np.float32)
    weights = keras.Variable(np.full(50, 3.0, np.float32))
    inner = Watched(0.05)
    optimizer = inner if memory is None else LowPassOptimizer(inner, memory)
    optimizer.build([weights])
    followed, ends = [], []
    for update in range(updates):
        gradient = curvature * weights.numpy()
        noise = random.normal(0, 2.0, 50).astype(np.float32)
        optimizer.apply([gradient + noise], [weights])
        if update >= updates // 3:
            followed.append(np.mean((inner.given[0] - gradient) ** 2))
            ends.append(np.mean(weights.numpy() ** 2))
    return np.mean(followed), np.mean(ends)


def test_it_reduces_the_error_on_a_noisy_quadratic():
    """Of the gradients, tenfold; plain SGD averages as well by itself, in the end."""
    for seed in range(5):
        (smooth, smooth_end), (rough, rough_end) = errors(0.9, seed), errors(None, seed)
        assert rough == pytest.approx(4.0, rel=0.1)
        assert smooth < 0.1 * rough
        assert smooth_end < 1.02 * rough_end


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


def test_its_state_is_saved_with_the_model(tmp_path):
    random = np.random.default_rng(0)
    source = ArraySource(
        random.integers(0, 256, (40, 8, 8, 1), np.uint8), random.integers(0, 10, 40)
    )
    model = DPMixModel(
        tiny_network(), plan=plan_for(40), views=views.no_augmentation(), seed=1
    )
    model.compile(LowPassOptimizer(keras.optimizers.Adam(0.01), 0.8))
    model.fit(PoissonBatches(source, model.plan), steps_per_epoch=3, verbose=0)
    assert len(model.state()["optimizer"]) > 4 * len(model.network.trainable_variables)
    model.save(tmp_path / "x.keras")
    again = keras.models.load_model(tmp_path / "x.keras")
    assert again.optimizer.memory == 0.8
    for one, other in zip(
        model.state()["optimizer"], again.state()["optimizer"], strict=True
    ):
        np.testing.assert_array_equal(one, other)
    filtered = again.optimizer._filtered + again.optimizer._last
    assert all(np.any(np.asarray(variable)) for variable in filtered)


def test_what_would_break_the_count_is_refused_inside_too():
    model = DPMixModel(tiny_network(), plan=plan_for(40), views=views.no_augmentation())
    accumulating = keras.optimizers.SGD(0.1, gradient_accumulation_steps=2)
    with pytest.raises(DPMixError, match="gradient_accumulation_steps"):
        model.compile(LowPassOptimizer(accumulating))
    with pytest.raises(DPMixError, match="memory must be"):
        LowPassOptimizer(keras.optimizers.SGD(0.1), 1.0)
