"""Naive mixup: its microbatches, and the sensitivity of every view maker."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from dpmix_tf import views
from dpmix_tf.data import ArraySource, PoissonBatches
from dpmix_tf.errors import DPMixError
from dpmix_tf.privacy import Ledger, randomness
from dpmix_tf.privacy.statement import state_guarantee
from dpmix_tf.training import DPMixModel, default_config
from dpmix_tf.training.build import make_plan
from tests.conftest import plan_for, tiny_network

CLIP = 1e-3  # everything is clipped


def linear_network():
    inputs = keras.Input((4, 4, 1))
    logits = keras.layers.Dense(2, kernel_initializer="zeros")
    return keras.Model(inputs, logits(keras.layers.Flatten()(inputs)))


def model_of(make_views, seed=3, batch=8):
    plan = plan_for(100, clip=CLIP, batch=batch)
    plan = type(plan)(**plan.to_dict() | {"sensitivity": make_views.sensitivity})
    return DPMixModel(linear_network(), plan=plan, views=make_views, seed=seed)


def distance(one, other):
    return float(
        np.sqrt(sum(np.sum(np.square(a - b)) for a, b in zip(one, other, strict=True)))
    )


MAKERS = {
    "no_augmentation": views.no_augmentation(),
    "self_aug": views.self_aug(base=3, padding=1),
    **{
        f"dp_mix_self, {mixer}": views.dp_mix_self(
            base=2, mixed=2, padding=1, mixer=mixer
        )
        for mixer in ("mixup", "cutmix", "resizemix", "fmix", "maskmix")
    },
    "fixed visits": views.dp_mix_self(base=2, mixed=2, padding=1, visits=3, seed=5),
    "naive_mixup, 2": views.naive_mixup(microbatch=2),
    "naive_mixup, 4": views.naive_mixup(microbatch=4, augment="crop", padding=1),
}


@pytest.mark.parametrize("name", MAKERS)
def test_one_example_moves_the_sum_by_what_is_declared(name):
    """Removing each example of many batches: never more, and nearly that much."""
    make_views = MAKERS[name]
    random = np.random.default_rng(0)
    # One picture with both labels: gradients point in opposite directions.
    image = np.full((4, 4, 1), 0.5, np.float32)
    largest = 0.0
    model = model_of(make_views)
    for update in range(25):
        ids = np.sort(random.choice(1000, 8, replace=False))
        images = np.repeat(image[np.newaxis], 8, 0)
        labels = random.integers(0, 2, 8)
        whole = model.clipped_gradient_sum(images, labels, ids=ids, update=update)
        for left_out in range(8):
            rest = np.arange(8) != left_out
            fewer = model.clipped_gradient_sum(
                images[rest], labels[rest], ids=ids[rest], update=update
            )
            largest = max(largest, distance(whole, fewer))
    assert largest <= make_views.sensitivity * CLIP * (1 + 1e-5)
    assert largest >= 0.95 * make_views.sensitivity * CLIP


def maker_of_records(make_views, ids, batch):
    """Seed -> views and labels of all microbatches, of examples that are their ids."""
    ids = np.asarray(ids, np.int64)
    images = (ids[:, None, None, None] * np.ones((1, 2, 2, 1))).astype(np.float32)
    labels = tf.one_hot(np.arange(len(ids)) % 3, 3)

    @tf.function  # eagerly, drawing example by example takes seconds
    def make(seed):
        parts, viewed = make_views.records(
            tf.constant(images),
            labels,
            tf.constant(ids),
            seed=seed,
            expected_batch_size=batch,
        )
        return viewed(*parts)

    return lambda seed: [
        part.numpy() for part in make(tf.constant(randomness.derive(seed, "views")))
    ]


def records(make_views, ids, batch):
    return maker_of_records(make_views, ids, batch)(seed=1)


def members(made, ids):
    """Which ids each microbatch's views are blended of, at most."""
    return [
        {i for i in ids if np.isclose(views_, i).any()} for views_ in made[:, :, 0, 0]
    ]


def test_microbatches_are_disjoint_and_one_example_changes_one():
    make_views = views.naive_mixup(microbatch=4, alpha=0.01)  # nearly no blending
    ids = np.arange(1, 33) * 10
    made, labels = records(make_views, ids, batch=32)
    assert made.shape == (8, 4, 2, 2, 1) and labels.shape == (8, 4, 3)
    groups = members(made, ids)
    assert sum(len(group) for group in groups) == len(set().union(*groups)) > 12
    sums = labels.sum(-1)
    assert np.all(np.isclose(sums, 1) | np.isclose(sums, 0))
    for left_out in (0, 7, 31):
        rest = np.arange(32) != left_out
        fewer, _ = records(make_views, ids[rest], batch=32)
        changed = [not np.array_equal(a, b) for a, b in zip(made, fewer, strict=True)]
        assert sum(changed) <= 1


def test_examples_join_microbatches_evenly_and_partners_differ():
    make_views = views.naive_mixup(microbatch=2, alpha=8.0)
    make = maker_of_records(make_views, np.arange(1, 401), batch=400)
    empty = []
    for seed in range(20):
        made, labels = make(seed)
        assert made.shape[0] == 200
        empty.append(np.mean(labels.sum((1, 2)) == 0))
    # Of 400 balls in 200 urns, a share of e^-2 stays empty.
    assert np.mean(empty) == pytest.approx(np.exp(-2), abs=0.01)


def test_empty_batches_and_lonely_examples_are_fine():
    make_views = views.naive_mixup(microbatch=4)
    made, labels = records(make_views, [], batch=16)
    assert made.shape[0] == 4 and not labels.any()
    made, labels = records(make_views, [7], batch=16)
    assert sorted(labels.sum((1, 2)).round(4)) == [0, 0, 0, 4]
    np.testing.assert_allclose(made[labels.sum((1, 2)) > 0], 7, rtol=1e-6)
    model = model_of(make_views)
    nothing = model.clipped_gradient_sum(
        np.zeros((0, 4, 4, 1), np.float32), np.zeros(0, np.int32)
    )
    assert all(not part.numpy().any() for part in nothing)


def test_noise_is_calibrated_for_twice_the_clip_norm():
    config = default_config()
    config.privacy.epsilon = 4.0
    once = make_plan(config, 1000)
    config.views.microbatch = 2
    twice = make_plan(config, 1000)
    assert (once.sensitivity, twice.sensitivity) == (1.0, 2.0)
    assert once.noise_multiplier == twice.noise_multiplier
    stddev = [model_deviation(plan) for plan in (once, twice)]
    assert stddev[1] == pytest.approx(2 * stddev[0], rel=0.05)
    assert "moves the sum by up to 2 times that" in state_guarantee(
        Ledger.planned(twice), twice
    )
    assert "microbatch" not in state_guarantee(Ledger.planned(once), once)


def model_deviation(plan):
    """Standard deviation of what an update without gradients leaves behind."""
    mechanism_views = (
        views.no_augmentation()
        if plan.sensitivity == 1
        else views.naive_mixup(microbatch=2)
    )
    model = DPMixModel(tiny_network(), plan=plan, views=mechanism_views, seed=1)
    zeros = model.step.mechanism.zero(
        [v.value for v in model.network.trainable_variables]
    )
    noise = model.step.mechanism.noisy_mean(zeros, tf.constant(0, tf.int64))
    return np.concatenate([part.numpy().ravel() for part in noise]).std()


def test_a_plan_for_another_sensitivity_is_refused():
    with pytest.raises(DPMixError, match="sensitivity=views.sensitivity"):
        DPMixModel(
            tiny_network(), plan=plan_for(100), views=views.naive_mixup(microbatch=2)
        )


@pytest.mark.parametrize(
    "settings", [{"microbatch": 1}, {"microbatch": 2, "alpha": 0}, {"augment": "x"}]
)
def test_impossible_microbatches_are_refused(settings):
    with pytest.raises(DPMixError):
        views.naive_mixup(**{"microbatch": 2} | settings)


def test_a_config_cannot_ask_for_both():
    settings = default_config().views.to_dict() | {"microbatch": 2}
    with pytest.raises(DPMixError, match="set views.base=1"):
        views.make_views(settings)
    settings |= {"base": 1, "mixed": 0, "augment": "flip"}
    assert views.make_views(settings) == views.naive_mixup(microbatch=2, augment="flip")


def test_it_trains_and_is_saved(tmp_path):
    random = np.random.default_rng(0)
    source = ArraySource(
        random.integers(0, 256, (60, 8, 8, 1), np.uint8), random.integers(0, 10, 60)
    )
    plan = plan_for(60, updates=4)
    plan = type(plan)(**plan.to_dict() | {"sensitivity": 2.0})
    model = DPMixModel(tiny_network(), plan=plan, views=views.naive_mixup(microbatch=2))
    model.compile(keras.optimizers.SGD(0.1))
    model.fit(PoissonBatches(source, plan), steps_per_epoch=2, verbose=0)
    model.save(tmp_path / "x.keras")
    again = keras.models.load_model(tmp_path / "x.keras")
    assert again.views == model.views and again.plan == plan and again.updates == 2
