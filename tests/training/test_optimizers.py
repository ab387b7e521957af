"""Optimizers and schedules: what is refused, what a config can say, what resumes."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf
from ml_collections import ConfigDict

from dpmix_tf import views
from dpmix_tf.errors import DPMixError
from dpmix_tf.training import DPMixModel, default_config
from dpmix_tf.training.filtering import KalmanOptimizer, LowPassOptimizer
from dpmix_tf.training.optimizers import (
    check_compile,
    check_optimizer,
    leave_gradients_as_they_are,
    make_optimizer,
    with_plain_schedule,
)
from tests.conftest import plan_for, tiny_network

COSINE = {"name": "CosineDecay", "initial_learning_rate": 4.0, "decay_steps": 100}


def model_for(source, seed=1):
    plan = plan_for(len(source), updates=20)
    return DPMixModel(
        tiny_network(), plan=plan, views=views.no_augmentation(), seed=seed
    )


def sgd(**settings):
    return keras.optimizers.SGD(0.1, **settings)


@pytest.mark.parametrize(
    ("optimizer", "words"),
    [
        (lambda: sgd(gradient_accumulation_steps=2), "expected_batch_size"),
        (lambda: sgd(loss_scale_factor=128.0), "loss_scale_factor=128"),
        (lambda: sgd(use_ema=True), "ema_decay"),
        (lambda: keras.optimizers.LossScaleOptimizer(sgd()), "inner optimizer"),
    ],
)
@pytest.mark.parametrize(
    "around",
    [
        lambda inner: inner,
        LowPassOptimizer,
        lambda inner: KalmanOptimizer(LowPassOptimizer(inner)),
    ],
)
def test_what_changes_updates_is_refused_however_deep_it_lies(optimizer, words, around):
    with pytest.raises(DPMixError, match=words):
        check_optimizer(around(optimizer()))


def test_replicas_gradients_are_left_alone_however_deep_the_optimizer_lies():
    inner, listed = sgd(), sgd()
    outer = KalmanOptimizer(LowPassOptimizer(inner))
    outer.others = [listed]
    leave_gradients_as_they_are(outer)
    gradients = [tf.ones([2])]
    for one in (outer, outer.inner, inner, listed):
        assert one._all_reduce_sum_gradients(gradients) is gradients

    class Other:
        """As a later Keras might have it."""

    with pytest.raises(DPMixError, match="adds gradients up over replicas"):
        leave_gradients_as_they_are(Other())


def test_what_acts_on_noisy_gradients_is_allowed():
    for settings in ({"weight_decay": 1e-4}, {"clipnorm": 1.0}, {"clipvalue": 1.0}):
        check_optimizer(KalmanOptimizer(LowPassOptimizer(sgd(**settings))))
    check_optimizer(keras.optimizers.AdamW(0.1, global_clipnorm=1.0))


def test_compile_asks(source):
    model = model_for(source)
    with pytest.raises(DPMixError, match="ema_decay"):
        model.compile(sgd(use_ema=True))
    with pytest.raises(DPMixError, match="one update per call.*Remove it"):
        model.compile(sgd(), steps_per_execution=5)


@pytest.mark.parametrize("steps", [5, "auto"])
def test_several_updates_per_call_are_refused(steps):
    with pytest.raises(DPMixError, match="one update per call"):
        check_compile({"steps_per_execution": steps})
    kept = {"run_eagerly": True}
    assert check_compile(kept | {"steps_per_execution": 1, "loss": None}) == kept


def configured(learning_rate, **optimizer):
    config = default_config()
    config.optimizer.update(learning_rate=learning_rate)
    with config.optimizer.unlocked():
        config.optimizer.update(optimizer)
    return config


KERAS_COSINE = keras.optimizers.schedules.CosineDecay(4.0, 100)


@pytest.mark.parametrize(
    "learning_rate",
    [
        COSINE,
        KERAS_COSINE,
        {"class_name": "CosineDecay", "config": KERAS_COSINE.get_config()},
    ],
)
@pytest.mark.parametrize("wrapper", [{}, {"low_pass": 0.9}, {"kalman_gain": 0.5}])
def test_schedules_come_back_from_config_json(learning_rate, wrapper):
    config = with_plain_schedule(configured(learning_rate, **wrapper))
    again = ConfigDict(json.loads(config.to_json()))
    for one in (config, again):
        optimizer = make_optimizer(one)
        inner = getattr(optimizer, "inner", optimizer)
        assert inner._learning_rate.get_config() == KERAS_COSINE.get_config()
        inner.iterations.assign(50)
        assert float(optimizer.learning_rate) == pytest.approx(2.0)


def test_a_locked_config_takes_a_schedule_and_no_typo():
    config = default_config()
    config.lock()
    config.optimizer.learning_rate = COSINE
    assert make_optimizer(config).learning_rate is not None
    with pytest.raises(AttributeError):
        config.optimizer.learning_rte = 1.0
    config.optimizer.learning_rate = 0.5
    assert float(make_optimizer(config).learning_rate) == 0.5


@pytest.mark.parametrize(
    ("learning_rate", "words"),
    [
        ({"name": "Cosine", "decay_steps": 5}, "CosineDecay, CosineDecayRestarts"),
        ({"decay_steps": 5}, "one of CosineDecay"),
        ({"name": "CosineDecay", "decay_step": 5}, "cannot make a CosineDecay from"),
        ({"class_name": "Cosine", "config": {}}, "one of CosineDecay"),
        ("fast", "an optimizer 'SGD'"),
    ],
)
def test_schedules_that_are_none_say_which_there_are(learning_rate, words):
    with pytest.raises(DPMixError, match=words):
        make_optimizer(configured(learning_rate))


@keras.saving.register_keras_serializable(package="tests")
class Halved(keras.optimizers.schedules.LearningRateSchedule):
    def __call__(self, step):
        return 0.5 ** keras.ops.cast(step, "float32")

    def get_config(self):
        return {}


def test_a_registered_schedule_of_ones_own_comes_back_too():
    config = with_plain_schedule(configured(Halved()))
    optimizer = make_optimizer(ConfigDict(json.loads(config.to_json())))
    optimizer.iterations.assign(2)
    assert float(optimizer.learning_rate) == 0.25


@pytest.mark.parametrize("wrapper", [{}, {"low_pass": 0.5}, {"kalman_gain": 0.5}])
def test_a_resumed_run_is_where_it_was_in_its_schedule(wrapper):
    """What a checkpoint holds of an optimizer is all of a schedule's state."""
    schedule = COSINE | {"initial_learning_rate": 1.0, "decay_steps": 6}

    def applied(stops):
        weights = keras.Variable([1.0, -2.0])
        state = []
        for updates in stops:
            optimizer = make_optimizer(configured(schedule, **wrapper))
            optimizer.build([weights])
            for variable, value in zip(optimizer.variables, state, strict=False):
                variable.assign(value)
            for _ in range(updates):
                optimizer.apply([keras.ops.convert_to_tensor([0.5, 0.25])], [weights])
            state = [np.asarray(variable) for variable in optimizer.variables]
        return np.asarray(weights), float(optimizer.learning_rate)

    whole, parts = applied([4]), applied([2, 2])
    assert parts[1] == whole[1] == pytest.approx(0.25)
    np.testing.assert_allclose(parts[0], whole[0], atol=1e-6)
    assert not np.allclose(whole[0], applied([2])[0])
