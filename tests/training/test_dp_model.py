import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy import stats

from dpmix_tf import views
from dpmix_tf.data import ArraySource, PoissonBatches
from dpmix_tf.errors import BudgetExhaustedError, DPMixError
from dpmix_tf.training import DPMixModel
from tests.conftest import plan_for, tiny_network


def compiled(plan, *, network=None, make_views=None, learning_rate=0.5, **settings):
    settings.setdefault("seed", 3)
    model = DPMixModel(
        network or tiny_network(),
        plan=plan,
        views=make_views or views.dp_mix_self(base=2, mixed=1, padding=1),
        **settings,
    )
    model.compile(keras.optimizers.SGD(learning_rate), metrics=["accuracy"])
    return model


def with_batch_normalization():
    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            keras.layers.Conv2D(4, 3),
            keras.layers.BatchNormalization(),
            keras.layers.Flatten(),
            keras.layers.Dense(10),
        ]
    )


def weights(model):
    return [variable.numpy() for variable in model.network.trainable_variables]


def test_an_update_subtracts_the_noisy_mean_over_the_expected_batch_size(source):
    plan = plan_for(len(source), batch=8, noise=0.0, updates=3)
    model = compiled(plan, learning_rate=0.5)
    batch = next(iter(PoissonBatches(source, plan, seed=3)))
    assert len(batch.labels) != 8  # else dividing by the actual size would pass too
    before = weights(model)
    total = model.clipped_gradient_sum(batch.images, batch.labels, ids=batch.ids)
    model.fit(PoissonBatches(source, plan, seed=3), steps_per_epoch=1, verbose=0)
    for old, new, part in zip(before, weights(model), total, strict=True):
        np.testing.assert_allclose(new, old - 0.5 * part / 8, rtol=1e-4, atol=1e-6)


def test_noise_reaches_every_weight_with_the_planned_deviation(source):
    plan = plan_for(len(source), batch=4, noise=3.0, clip=0.2, updates=2)
    moved = {}
    for noise in (0.0, 3.0):
        network = tiny_network()
        keras.utils.set_random_seed(0)
        network = keras.models.clone_model(network)
        settings = plan_for(len(source), batch=4, noise=noise, clip=0.2, updates=2)
        model = compiled(settings, network=network, learning_rate=1.0)
        batches = PoissonBatches(source, settings, seed=3)
        model.fit(batches, steps_per_epoch=1, verbose=0)
        moved[noise] = np.concatenate([part.ravel() for part in weights(model)])
    noise = moved[3.0] - moved[0.0]
    scale = plan.noise_multiplier * plan.clip_norm / plan.expected_batch_size
    assert stats.kstest(noise, "norm", (0, scale)).pvalue > 1e-3
    assert np.all(noise != 0)


def test_an_empty_batch_still_adds_noise_and_counts(source):
    plan = plan_for(len(source), updates=2)
    model = compiled(plan)
    before = weights(model)
    images, labels = source.read(np.array([], np.int64))
    empty = tf.data.Dataset.from_tensors((images, labels))
    model.fit(empty, assume_poisson=True, verbose=0)
    assert model.updates == 1
    assert all(np.any(a != b) for a, b in zip(before, weights(model), strict=True))


def test_batches_of_any_size_are_trained_on_without_retracing(source):
    plan = plan_for(len(source), batch=3, updates=30)
    model = compiled(plan)
    traces, clipped_sum = [], model.step.clipped_sum

    def counted(*arguments):
        traces.append(arguments)
        return clipped_sum(*arguments)

    model.step.clipped_sum = counted
    batches = PoissonBatches(source, plan, seed=1)
    model.fit(batches, steps_per_epoch=2, verbose=0)
    model.fit(batches, verbose=0)
    assert len({len(batches.indices(update)) for update in range(30)}) > 3
    assert model.updates == 30
    assert len(traces) == 1


def test_fit_continues_instead_of_drawing_the_same_batches_again(source):
    plan = plan_for(len(source), batch=5, updates=6)
    batches = PoissonBatches(source, plan, seed=2)
    whole, parts = compiled(plan), compiled(plan)
    for one, other in zip(
        whole.network.variables, parts.network.variables, strict=True
    ):
        other.assign(one)
    whole.fit(batches, verbose=0)
    parts.fit(batches, steps_per_epoch=2, epochs=2, verbose=0)
    parts.fit(batches, verbose=0)
    assert parts.updates == 6
    for one, other in zip(weights(whole), weights(parts), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


def test_fit_stops_at_the_budget(source):
    plan = plan_for(len(source), updates=3)
    model = compiled(plan)
    batches = PoissonBatches(source, plan)
    with pytest.raises(BudgetExhaustedError, match="3 updates, 0 are spent"):
        model.fit(batches, steps_per_epoch=2, epochs=2, verbose=0)
    assert model.updates == 0
    model.fit(batches, verbose=0)
    with pytest.raises(BudgetExhaustedError, match="3 are spent"):
        model.fit(batches, verbose=0)


@pytest.mark.parametrize("jit_compile", [False, True])
def test_a_dataset_of_unknown_length_ends_with_the_budget(source, jit_compile):
    # XLA drops assertions, and knows no Gamma draws, which mixing needs.
    model = compiled(
        plan_for(len(source), updates=3), make_views=views.no_augmentation()
    )
    model.compile("sgd", jit_compile=jit_compile)
    few = tf.data.Dataset.from_tensors(source.read(np.arange(2)))
    unknown_length = few.repeat(5).filter(lambda images, labels: True)
    model.fit(unknown_length, assume_poisson=True, verbose=0)
    assert model.updates == 3


def test_the_last_line_of_defence_is_in_the_graph(source):
    plan = plan_for(len(source), updates=1)
    model = compiled(plan)
    batches = PoissonBatches(source, plan)
    model.fit(batches, verbose=0)
    with pytest.raises(tf.errors.InvalidArgumentError, match="updates are spent"):
        model.train_step(next(iter(batches)))
    assert model.updates == 1


def test_batches_that_nobody_sampled_reach_no_step(source):
    model = compiled(plan_for(len(source)))
    batch = source.read(np.arange(2))
    for step in (lambda: model.train_on_batch(*batch), lambda: model.train_step(batch)):
        with pytest.raises(DPMixError, match="did not draw"):
            step()
    assert model.updates == 0


def test_layers_unfrozen_after_the_fact_are_refused(source):
    network = with_batch_normalization()
    network.layers[1].trainable = False
    plan = plan_for(len(source))
    model = compiled(plan, network=network)
    network.layers[1].trainable = True
    with pytest.raises(DPMixError, match="GroupNormalization"):
        model.compile("sgd")
    with pytest.raises(DPMixError, match="frozen or unfrozen"):
        model.fit(PoissonBatches(source, plan), verbose=0)


def test_labels_beyond_the_classes_are_refused_while_training(source):
    class Wrong(type(source)):
        def read(self, indices):
            images, labels = super().read(indices)
            return images, labels + 7

    wrong = Wrong(*source.read(np.arange(len(source))))
    plan = plan_for(len(source), batch=50)
    with pytest.raises(Exception, match="gave labels from"):
        compiled(plan).fit(PoissonBatches(wrong, plan), verbose=0)


def test_saved_weights_carry_the_count_and_the_averages(source, tmp_path):
    plan = plan_for(len(source), updates=4)
    model = compiled(plan)
    model.fit(PoissonBatches(source, plan), steps_per_epoch=3, verbose=0)
    model.save_weights(tmp_path / "model.weights.h5")
    other = compiled(plan, seed=9)
    other.load_weights(tmp_path / "model.weights.h5")
    assert other.updates == 3 and other.epsilon == plan.epsilon(3)
    for one, two in zip(model.average.averages, other.average.averages, strict=True):
        np.testing.assert_array_equal(one, two)
    with pytest.raises(BudgetExhaustedError):
        other.fit(PoissonBatches(source, plan), steps_per_epoch=2, verbose=0)


def test_fit_refuses_batches_that_the_plan_did_not_draw(source):
    plan = plan_for(len(source))
    model = compiled(plan)
    images, labels = source.read(np.arange(10))
    fixed = tf.data.Dataset.from_tensor_slices((images, labels)).batch(5)
    with pytest.raises(DPMixError, match="assume_poisson=True"):
        model.fit(fixed)
    with pytest.raises(DPMixError, match="not x and y"):
        model.fit(images, labels)
    other = plan_for(len(source), noise=2.0)
    with pytest.raises(DPMixError, match="another plan"):
        model.fit(PoissonBatches(source, other))
    for parts, words in (
        ((images, labels, np.ones(10)), "no sample weights"),
        (images, r"\(images, labels\)"),
    ):
        other = tf.data.Dataset.from_tensor_slices(parts).batch(5)
        with pytest.raises(DPMixError, match=words):
            model.fit(other, assume_poisson=True)
    assert model.updates == 0 and "cannot vouch" not in model.statement()
    model.fit(fixed, assume_poisson=True, verbose=0)
    assert model.updates == 2
    assert "cannot vouch" in model.statement()


def test_fit_refuses_examples_that_the_network_was_not_built_for(source):
    plan = plan_for(len(source))
    with pytest.raises(DPMixError, match="5 outputs; the source has 10 classes"):
        compiled(plan, network=tiny_network(num_classes=5)).fit(
            PoissonBatches(source, plan)
        )
    with pytest.raises(DPMixError, match=r"shape \(8, 8, 3\); the source's are"):
        compiled(plan, network=tiny_network(input_shape=(8, 8, 3))).fit(
            PoissonBatches(source, plan)
        )


@pytest.mark.parametrize(
    "argument",
    [
        {"validation_split": 0.1},
        {"class_weight": {0: 2.0}},
        {"sample_weight": np.ones(3)},
    ],
)
def test_fit_refuses_what_would_change_the_examples_weights(source, argument):
    plan = plan_for(len(source))
    with pytest.raises((DPMixError, ValueError), match=next(iter(argument))):
        compiled(plan).fit(PoissonBatches(source, plan), **argument)


def test_compile_refuses_accumulation_and_other_losses(source):
    model = compiled(plan_for(len(source)))
    with pytest.raises(DPMixError, match="gradient_accumulation_steps"):
        model.compile(keras.optimizers.SGD(1.0, gradient_accumulation_steps=2))
    with pytest.raises(DPMixError, match="LossScaleOptimizer"):
        model.compile(keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(1.0)))
    with pytest.raises(DPMixError, match="no loss"):
        model.compile("sgd", loss="mse")


def test_batch_normalisation_is_refused(source):
    network = with_batch_normalization()
    with pytest.raises(DPMixError, match="GroupNormalization"):
        compiled(plan_for(len(source)), network=network)


def test_nothing_private_is_shown_unless_asked_for(source):
    plan = plan_for(len(source), updates=2)
    history = compiled(plan).fit(PoissonBatches(source, plan), verbose=0).history
    assert set(history) == {"updates"}
    model = compiled(plan, private_metrics=True)
    history = model.fit(PoissonBatches(source, plan), verbose=0).history
    shown = set(history) - {"updates"}
    assert shown and all(name.startswith("private_") for name in shown)


def test_only_the_trainable_part_moves(source):
    network = tiny_network()
    network.layers[2].trainable = False
    plan = plan_for(len(source), updates=2)
    model = compiled(plan, network=network)
    frozen = network.layers[2].kernel.numpy()
    model.fit(PoissonBatches(source, plan), verbose=0)
    np.testing.assert_array_equal(frozen, network.layers[2].kernel)


def test_averages_follow_the_warm_up_formula(source):
    plan = plan_for(len(source), updates=4)
    model = compiled(plan, ema_decay=0.25)
    expected = weights(model)
    for update in range(4):
        model.fit(PoissonBatches(source, plan, seed=1), steps_per_epoch=1, verbose=0)
        decay = min(0.25, (1 + update) / (10 + update))
        expected = [
            decay * old + (1 - decay) * new
            for old, new in zip(expected, weights(model), strict=True)
        ]
    for average, value in zip(model.average.averages, expected, strict=True):
        np.testing.assert_allclose(average, value, rtol=1e-4, atol=1e-6)
    raw = weights(model)
    with model.average.applied():
        np.testing.assert_allclose(weights(model)[0], expected[0], atol=1e-6)
    np.testing.assert_array_equal(weights(model)[0], raw[0])


def test_evaluate_and_predict_work_as_in_keras(source):
    plan = plan_for(len(source), updates=1)
    model = compiled(plan)
    images, labels = source.read(np.arange(30))
    result = model.evaluate(images, labels, verbose=0, return_dict=True)
    logits = model.predict(images, verbose=0)
    assert logits.shape == (30, 10)
    assert result["accuracy"] == pytest.approx(np.mean(logits.argmax(1) == labels))
    # uint8 and the same image as floats in [0, 1] are one and the same.
    as_floats = model.predict(images.astype(np.float32) / 255, verbose=0)
    np.testing.assert_allclose(logits, as_floats, atol=1e-4)


def test_a_seed_repeats_the_run_and_no_seed_does_not(source):
    plan = plan_for(len(source), batch=4, updates=3)
    start = tiny_network()
    finals = []
    for seed in (1, 1, 2, None, None):
        network = keras.models.clone_model(start)
        network.set_weights(start.get_weights())
        model = compiled(plan, network=network, seed=seed)
        model.fit(PoissonBatches(source, plan, seed=5), verbose=0)
        finals.append(np.concatenate([part.ravel() for part in weights(model)]))
    np.testing.assert_array_equal(finals[0], finals[1])
    for index in (2, 3, 4):
        assert np.all(finals[index] != finals[index - 1])


def test_epsilon_counts_each_update_once(source):
    plan = plan_for(len(source), updates=4)
    model = compiled(plan)
    assert model.epsilon == 0
    model.fit(PoissonBatches(source, plan), steps_per_epoch=3, verbose=0)
    assert model.updates == 3
    assert model.epsilon == plan.epsilon(3)
    assert "after 3 updates" in model.statement()


@pytest.mark.slow
def test_private_training_learns_to_read_digits(digits):
    """The whole chain has to work for this: a wrong sign or scale does not learn."""
    plan = plan_for(len(digits.train), batch=200, updates=40, noise=0.6)
    model = compiled(
        plan, make_views=views.no_augmentation(), learning_rate=2.0, network=None
    )
    model.fit(PoissonBatches(digits.train, plan, seed=1), verbose=0)
    accuracy = model.evaluate(
        *digits.test.read(np.arange(len(digits.test))), verbose=0, return_dict=True
    )["accuracy"]
    assert accuracy > 0.75


def test_two_classes_and_soft_labels_work(source):
    images, labels = source.read(np.arange(20))
    few = ArraySource(images, labels % 2, ["even", "odd"])
    plan = plan_for(20, batch=5, updates=2)
    model = compiled(plan, network=tiny_network(num_classes=2))
    model.fit(PoissonBatches(few, plan), verbose=0)
    soft = np.full((20, 2), 0.5, np.float32)
    hard = np.eye(2, dtype=np.float32)[labels % 2]
    sums = [
        model.clipped_gradient_sum(images, given, update=0)
        for given in (soft, hard, labels % 2)
    ]
    assert np.any(np.asarray(sums[0][0]) != np.asarray(sums[1][0]))
    np.testing.assert_array_equal(sums[1][0], sums[2][0])


def test_nothing_of_an_abandoned_update_is_applied(source):
    plan = plan_for(len(source), batch=8, noise=1.0, updates=5)
    model = compiled(plan)
    batches = PoissonBatches(source, plan, seed=3)
    model.fit(batches, steps_per_epoch=2, verbose=0)
    before = [np.array(v) for group in model.state().values() for v in group]
    model.abandon_update()
    with pytest.raises(tf.errors.InvalidArgumentError, match="abandoned"):
        model.fit(batches, steps_per_epoch=2, verbose=0)
    after = [np.array(v) for group in model.state().values() for v in group]
    assert model.updates == 2
    for old, new in zip(before, after, strict=True):
        np.testing.assert_array_equal(old, new)


def test_a_source_is_sampled_by_the_plan_and_evaluated_in_order(source):
    plan = plan_for(len(source), batch=8, updates=4)
    by_source, by_batches = compiled(plan, seed=3), compiled(plan, seed=3)
    by_source.set_weights(by_batches.get_weights())
    history = by_source.fit(
        source, steps_per_epoch=2, epochs=2, validation_data=source, verbose=0
    )
    by_batches.fit(PoissonBatches(source, plan, seed=3), verbose=0)
    for one, other in zip(weights(by_source), weights(by_batches), strict=True):
        np.testing.assert_array_equal(one, other)
    assert len(history.history["val_accuracy"]) == 2
    images, labels = source.arrays()
    assert len(images) == len(labels) == len(source)
    np.testing.assert_allclose(
        by_source.evaluate(source, verbose=0),
        by_source.evaluate(images, labels, verbose=0),
        rtol=1e-5,
    )
