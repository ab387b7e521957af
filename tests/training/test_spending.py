"""What is spent is reported, whatever Keras does to weights meanwhile."""

import contextlib
import dataclasses

import keras
import pytest
import tensorflow as tf

from dpmix_tf import views
from dpmix_tf.data import PoissonBatches
from dpmix_tf.errors import BudgetExhaustedError, DivergedError, DPMixError
from dpmix_tf.training import DPMixModel
from tests.conftest import plan_for, tiny_network
from tests.museum.forgetting import WeightsComeBack


def model_of(network, plan, *, rate=0.5, **settings):
    model = DPMixModel(
        network, plan=plan, views=views.self_aug(base=2, padding=1), **settings
    )
    model.compile(keras.optimizers.SGD(rate))
    return model


def recorded(model):
    """Updates that batches were drawn for, and that noise was keyed by."""
    drawn, keyed = [], []
    clipped_sum, noisy_mean = model.step.clipped_sum, model.step.mechanism.noisy_mean

    def watched_sum(images, labels, ids, update):
        tf.py_function(lambda number: drawn.append(int(number)), [update], [])
        return clipped_sum(images, labels, ids, update)

    def watched_noise(total, update):
        tf.py_function(lambda number: keyed.append(int(number)), [update], [])
        return noisy_mean(total, update)

    model.step.clipped_sum, model.step.mechanism.noisy_mean = watched_sum, watched_noise
    return drawn, keyed


def test_weights_set_back_rewind_neither_noise_nor_batches(source):
    plan = plan_for(len(source), updates=20)
    model = model_of(tiny_network(), plan)
    _, keyed = recorded(model)
    model.fit(
        PoissonBatches(source, plan),
        steps_per_epoch=5,
        epochs=4,
        verbose=0,
        callbacks=[WeightsComeBack()],
    )
    assert keyed == list(range(20)) and model.updates == 20


def test_a_backup_restored_in_another_process_draws_on_where_it_was(source, tmp_path):
    plan = plan_for(len(source), updates=20)

    def trained(stop_after=None):
        model = model_of(tiny_network(), plan, seed=5)
        drawn, keyed = recorded(model)
        crash = keras.callbacks.LambdaCallback(
            on_train_batch_end=lambda batch, logs: (
                1 / 0 if logs["updates"] == stop_after else None
            )
        )
        backup = keras.callbacks.BackupAndRestore(tmp_path / "backup")
        with contextlib.suppress(ZeroDivisionError):
            model.fit(
                PoissonBatches(source, plan, seed=5),
                steps_per_epoch=5,
                epochs=4,
                verbose=0,
                callbacks=[backup, crash],
            )
        return model, drawn, keyed

    trained(stop_after=14)
    model, drawn, keyed = trained()
    assert drawn == keyed == list(range(10, 20))
    assert model.updates == 20 and model.epsilon == plan.epsilon(20)


def test_a_half_applied_update_is_paid_for(source):
    plan = plan_for(len(source), updates=5)
    model = model_of(tiny_network(), plan)
    model.compile(keras.optimizers.SGD(0.5), run_eagerly=True)
    _, keyed = recorded(model)
    apply = model.optimizer.apply

    def broken(gradients, variables):
        variables[0].assign_sub(gradients[0])
        raise RuntimeError("out of memory")

    model.optimizer.apply = broken
    with pytest.raises(RuntimeError, match="out of memory"):
        model.fit(PoissonBatches(source, plan), steps_per_epoch=1, verbose=0)
    assert model.updates == 1
    model.optimizer.apply = apply
    model.fit(PoissonBatches(source, plan), steps_per_epoch=4, verbose=0)
    assert keyed == [0, 1, 2, 3, 4]


def test_a_batch_of_another_update_is_refused_in_the_graph(source):
    plan = plan_for(len(source), updates=5)
    model = model_of(tiny_network(), plan)
    batch = next(iter(PoissonBatches(source, plan, start=3)))
    with pytest.raises(tf.errors.InvalidArgumentError, match="is of update"):
        model.train_step(batch)
    assert model.updates == 0


def test_a_new_model_of_a_trained_network_continues_its_ledger(source):
    network = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            keras.layers.Conv2D(4, 3),
            keras.layers.Flatten(),
            keras.layers.Dense(10),
        ]
    )
    plan = plan_for(len(source), updates=30)
    first = model_of(network, plan)
    first.fit(PoissonBatches(source, plan), steps_per_epoch=20, verbose=0)
    network.layers[0].trainable = False
    with pytest.raises(DPMixError, match="counts what this one has spent"):
        first.fit(PoissonBatches(source, plan), verbose=0)
    second = model_of(network, plan)
    assert second.updates == 20
    with pytest.raises(BudgetExhaustedError):
        second.fit(PoissonBatches(source, plan), steps_per_epoch=11, verbose=0)
    second.fit(PoissonBatches(source, plan), steps_per_epoch=10, verbose=0)
    assert second.epsilon == first.epsilon == plan.epsilon(30)


def test_another_plan_is_composed_with_the_first(source, caplog):
    network, plan = tiny_network(), plan_for(len(source), updates=4)
    model_of(network, plan).fit(PoissonBatches(source, plan), verbose=0)
    other = dataclasses.replace(plan, noise_multiplier=2.0)
    second = model_of(network, other)
    assert "trained privately before" in caplog.text
    assert second.updates == 0 and second.epsilon == plan.epsilon()
    second.fit(PoissonBatches(source, other), verbose=0)
    assert second.epsilon > max(plan.epsilon(), other.epsilon())
    assert "trained under 2 plans" in second.statement()


def test_a_new_head_on_trained_layers_counts_them(source):
    trained, plan = tiny_network(), plan_for(len(source), updates=4)
    model_of(trained, plan).fit(PoissonBatches(source, plan), verbose=0)
    head = keras.layers.Dense(10)(trained.layers[-2].output)
    whole = keras.Model(trained.inputs[0], head)
    assert model_of(whole, plan).epsilon == plan.epsilon(4)


def test_the_file_of_the_best_epoch_says_what_the_choice_costs(source, tmp_path):
    plan = plan_for(len(source), updates=20)
    model = model_of(tiny_network(), plan)
    scores = iter([0.5, 0.9, 0.4, 0.3])

    class Score(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            logs["val_score"] = next(scores)

    best = keras.callbacks.ModelCheckpoint(
        tmp_path / "best.keras", monitor="val_score", mode="max", save_best_only=True
    )
    model.fit(
        PoissonBatches(source, plan),
        steps_per_epoch=5,
        epochs=4,
        verbose=0,
        callbacks=[Score(), best],
    )
    chosen = keras.models.load_model(tmp_path / "best.keras")
    assert chosen.updates == 10
    statement = chosen.statement()
    assert "after 10 of 20 planned updates" in statement
    shown = float(statement.split("costs epsilon = ")[1].split(".\n")[0])
    assert shown >= plan.epsilon(20)


def test_a_copy_that_is_given_the_weights_counts_them(source):
    plan = plan_for(len(source), updates=4)
    model = model_of(tiny_network(), plan)
    model.fit(PoissonBatches(source, plan), steps_per_epoch=3, verbose=0)
    copy = DPMixModel.from_config(model.get_config())
    copy.set_weights(model.get_weights())
    assert copy.updates == 3 and copy.epsilon == model.epsilon


@pytest.mark.parametrize(
    "callback",
    [
        keras.callbacks.EarlyStopping(monitor="private_loss"),
        keras.callbacks.ReduceLROnPlateau(monitor="private_gradient_norm"),
        keras.callbacks.ModelCheckpoint("x.keras", monitor="private_loss"),
    ],
)
def test_numbers_without_noise_steer_nothing(source, callback):
    plan = plan_for(len(source), updates=4)
    model = model_of(tiny_network(), plan, private_metrics=True)
    for callbacks in (callback, [callback], keras.callbacks.CallbackList([callback])):
        with pytest.raises(DPMixError, match="Monitor a validation metric"):
            model.fit(PoissonBatches(source, plan), verbose=0, callbacks=callbacks)
    assert model.updates == 0
    assert "private_" in model.statement()


def test_training_stops_where_weights_stop_being_finite(source):
    plan = plan_for(len(source), updates=20)
    model = model_of(tiny_network(), plan, rate=1e38)
    with pytest.raises(DivergedError, match="Lower the learning rate"):
        model.fit(PoissonBatches(source, plan), verbose=0)
    assert 0 < model.updates < 5
