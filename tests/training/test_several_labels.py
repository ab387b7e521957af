"""Several labels per image: their loss, labels that are not known, and the sum."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from dpmix_tf import views
from dpmix_tf.data import ArraySource, Dataset, PeopleSource, PoissonBatches
from dpmix_tf.errors import DPMixError
from dpmix_tf.experiments import default_experiment
from dpmix_tf.experiments.study import Study
from dpmix_tf.tasks import MULTI_LABEL
from dpmix_tf.training import DPMixModel, default_config, encoding
from dpmix_tf.training.encoding import encode_source, encode_views
from dpmix_tf.training.losses import binary_cross_entropy
from dpmix_tf.training.warm_start import warm_start
from tests.conftest import plan_for, tiny_network
from tests.training.test_encoding import network_of

LABELS = 5


@pytest.fixture(autouse=True)
def new_process(monkeypatch):
    monkeypatch.setattr(encoding, "_opened", {})


@pytest.fixture(scope="module")
def several(source):
    """Digits with made-up findings, a quarter of which are not known."""
    images, digits = source.arrays()
    random = np.random.default_rng(0)
    labels = ((digits[:, np.newaxis] + np.arange(LABELS)) % 3 == 0).astype(np.float32)
    labels[random.random(labels.shape) < 0.25] = np.nan
    names = [f"finding {place}" for place in range(LABELS)]
    return ArraySource(images, labels, names)


def model_of(source, maker, network=None, **plan):
    plan = plan_for(len(source), **{"clip": 0.05, "record": source.record} | plan)
    network = network or tiny_network(LABELS)
    return DPMixModel(network, plan=plan, views=maker, seed=1, task=MULTI_LABEL)


def test_loss_is_the_mean_over_labels_of_those_that_are_known():
    random = np.random.default_rng(1)
    logits, labels = random.normal(size=(6, 4)), random.random((6, 4))
    labels[0, 1] = labels[2] = np.nan
    chance = 1 / (1 + np.exp(-logits))
    each = -(labels * np.log(chance) + (1 - labels) * np.log(1 - chance))
    expected = np.nansum(each, axis=1) / 4
    found = binary_cross_entropy(
        tf.constant(logits, tf.float32), tf.constant(labels, tf.float32)
    )
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dense", [False, True])
def test_the_gradient_is_keras_s_own_where_labels_are_known(dense, several):
    """A record's gradient, longer than no clip, against one built from Keras's loss."""
    network = network_of(classes=LABELS) if dense else tiny_network(LABELS)
    model = model_of(several, views.ViewMaker(), network, clip=1e6)
    images, labels = several.read(np.arange(3))
    assert np.isnan(labels).any()
    total = model.clipped_gradient_sum(images, labels)
    known = np.isfinite(labels)
    with tf.GradientTape() as tape:
        logits = network(images / np.float32(255), training=True)
        chances = keras.ops.sigmoid(logits)
        each = keras.ops.binary_crossentropy(np.nan_to_num(labels), chances)
        value = tf.reduce_sum(tf.where(known, each, 0.0)) / LABELS
    for ours, theirs in zip(
        total, tape.gradient(value, network.trainable_variables), strict=True
    ):
        assert np.isfinite(ours).all()
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-5)


def test_a_blend_with_what_is_not_known_is_not_known(several):
    maker = views.dp_mix_self(base=2, mixed=6, augment="none")
    image = np.zeros((1, 2, 8, 8, 1), np.float32)
    labels = np.array([[[1, 0, np.nan, 1, 0], [1, 1, 0, np.nan, 0]]], np.float32)
    _, soft = maker(image, labels, seed=3)
    mixed = soft[0, 2:].numpy()
    assert np.isnan(mixed[:, 2:4]).all()
    np.testing.assert_allclose(mixed[:, [0, 4]], [[1, 0]] * 6)
    assert ((mixed[:, 1] >= 0) & (mixed[:, 1] <= 1)).all()


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("cached", [False, True])
def test_one_record_moves_the_sum_by_the_clip_norm(grouped, cached, several, tmp_path):
    source = several
    if grouped:
        source = PeopleSource(several, np.arange(200) // 10, max_images=4)
    maker = views.dp_mix_self(base=3, mixed=2, padding=1)
    network = network_of(classes=LABELS)
    if cached:
        maker = views.dp_mix_self(base=3, mixed=2, padding=1, visits=2)
        maker = encode_views(network, maker, source, cache_dir=tmp_path)
    model = model_of(source, maker, network, clip=0.01)
    ids = np.arange(6)
    key, turns = np.array([1, 2]), np.zeros(6, int)

    def total(kept):
        batch = source.draw(kept, key, turns[: len(kept)])
        return model.clipped_gradient_sum(*batch, ids=kept)

    whole = total(ids)
    for out in ids:
        less = total(ids[ids != out])
        moved = np.sqrt(sum(np.sum((a - b) ** 2) for a, b in zip(whole, less)))  # noqa: B905
        assert 0.009 < moved <= 0.01 * (1 + 1e-5)


def test_training_is_the_same_with_and_without_a_cache(several, tmp_path):
    maker = views.dp_mix_self(base=3, mixed=2, padding=1, visits=2)
    ends = []
    for cached in (False, True):
        network = network_of(classes=LABELS)
        made = maker
        if cached:
            made = encode_views(
                network, maker, several, cache_dir=tmp_path, dtype="float32"
            )
        model = model_of(several, made, network, batch=20, updates=3)
        model.compile(keras.optimizers.SGD(1.0))
        model.fit(PoissonBatches(several, model.plan, seed=4), verbose=0)
        ends.append([np.asarray(v) for v in network.trainable_variables])
    for one, other in zip(*ends, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)
    features = encode_source(network, several, cache_dir=tmp_path)
    _, kept = features.read(np.arange(5))
    np.testing.assert_array_equal(kept, several.read(np.arange(5))[1])


def test_fit_evaluate_save_and_load(several, tmp_path):
    model = model_of(several, views.dp_mix_self(base=2, mixed=1, padding=1), updates=2)
    model.compile(keras.optimizers.SGD(0.1))
    history = model.fit(several, validation_data=several, verbose=0).history
    assert np.isfinite(history["val_loss"]).all()
    model.save(tmp_path / "several.keras")
    again = keras.models.load_model(tmp_path / "several.keras")
    assert again.task == MULTI_LABEL
    again.compile(keras.optimizers.SGD(0.1))
    loss = again.evaluate(several, verbose=0)
    assert loss == pytest.approx(model.evaluate(several, verbose=0), rel=1e-5)


def test_refused_before_anything_is_spent(several, source):
    plan = plan_for(200)
    network = tiny_network(LABELS)
    with pytest.raises(DPMixError, match="task must be one of"):
        DPMixModel(network, plan=plan, views=views.ViewMaker(), task="several")
    naive = views.NaiveMixup(microbatch=2)
    with pytest.raises(DPMixError, match="one class per image"):
        DPMixModel(
            network, plan=plan_for(200, sensitivity=2.0), views=naive, task=MULTI_LABEL
        )
    model = DPMixModel(network, plan=plan, views=views.ViewMaker())
    model.compile("sgd")
    with pytest.raises(DPMixError, match="the source's labels are for 'multi_label'"):
        model.fit(several)
    images, labels = several.arrays()
    with pytest.raises(DPMixError, match="must each be 0, 1, or NaN"):
        ArraySource(images, labels + 1)
    with pytest.raises(DPMixError, match="2 class_names for 5 labels"):
        ArraySource(images, labels, ["a", "b"])
    assert model.updates == 0


def test_what_knows_one_class_per_image_is_refused():
    config = default_config()
    config.warm_start.epochs = 1
    images = np.zeros((4, 8, 8, 1), np.uint8)
    part = ArraySource(images, np.eye(4)[:, :2])
    dataset = Dataset(train=part, validation=None, test=part)
    with pytest.raises(DPMixError, match="would teach another task"):
        warm_start(config, dataset, seed=1)
    config = default_config()
    config.data.label_columns = ("edema",)
    with pytest.raises(DPMixError, match="compare accuracy, of one label per image"):
        Study(default_experiment(config, {"dp_sgd": {}}))
