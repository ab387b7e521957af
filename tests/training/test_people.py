"""A person is one record: clipped once, whatever they have, and said so."""

import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf

from dpmix_tf import views
from dpmix_tf.data import ArraySource, PeopleSource
from dpmix_tf.errors import DPMixError
from dpmix_tf.privacy.statement import state_guarantee
from dpmix_tf.synthetic import SyntheticPool
from dpmix_tf.training import DPMixModel, encoding
from dpmix_tf.training.encoding import encode_views
from dpmix_tf.training.evaluation import make_predict, measure
from tests.conftest import plan_for, tiny_network
from tests.training.test_encoding import network_of

CLIP = 0.05
COUNTS = (1, 2, 50, 3, 7, 1, 20, 5)


@pytest.fixture(autouse=True)
def new_process(monkeypatch):
    monkeypatch.setattr(encoding, "_opened", {})


@pytest.fixture(scope="module")
def people(digits):
    """Eight people with 1 to 50 images; among them huge ones, and ones that are NaN."""
    images, labels = digits.train.read(np.arange(sum(COUNTS)))
    images = (images / 255).astype(np.float32)
    owners = np.repeat(np.arange(len(COUNTS)), COUNTS)
    images[owners == 3] *= 1e6
    images[owners == 4] = np.nan
    return PeopleSource(ArraySource(images, labels), owners, max_images=4)


def pool_of(source):
    images, labels = source.arrays()
    order = np.argsort(labels[:50], kind="stable")
    return SyntheticPool(
        images=255 - images[:50][order],
        labels=labels[:50][order],
        class_names=source.class_names,
        digest="",
    )


MAKERS = {
    "plain": lambda pool: views.no_augmentation(),
    "self_aug": lambda pool: views.self_aug(base=4, padding=1),
    "self": lambda pool: views.dp_mix_self(base=3, mixed=2, padding=1),
    "cutmix": lambda pool: views.dp_mix_self(
        base=3, mixed=2, padding=1, mixer="cutmix"
    ),
    "diff": lambda pool: views.dp_mix_diff(
        pool=pool, base=3, mixed=2, synthetic=2, padding=1
    ),
    "same class": lambda pool: views.dp_mix_diff(
        pool=pool, base=3, mixed=2, synthetic=2, padding=1, same_class=True
    ),
}


def length(parts):
    return float(np.sqrt(sum(np.sum(np.square(part)) for part in parts)))


def moved_by(model, people, ids, update):
    """How far each of some people moves the clipped sum, in clip norms."""

    def total(kept):
        images, labels = people.draw(kept, np.array([1, 2]), np.full_like(kept, update))
        return [
            part.numpy()
            for part in model.clipped_gradient_sum(
                images, labels, ids=kept, update=update
            )
        ]

    whole = total(ids)
    return [
        length([a - b for a, b in zip(whole, total(ids[ids != out]), strict=True)])
        / model.plan.clip_norm
        for out in ids
    ]


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("dense", [False, True])
def test_one_person_moves_the_sum_by_the_clip_norm(kind, dense, people, source):
    maker = MAKERS[kind](pool_of(source))
    plan = plan_for(len(people), clip=CLIP, record="person")
    network = network_of() if dense else tiny_network()
    model = DPMixModel(network, plan=plan, views=maker, seed=1, chunk_size=4)
    moved = moved_by(model, people, np.arange(len(people)), update=3)
    assert max(moved) <= 1 + 1e-5
    assert np.isfinite(moved).all()
    assert dense or moved[4] < 1e-6  # what is not finite counts as nothing
    assert sum(one > 0.999 for one in moved) >= 5  # the clip norm binds


@pytest.mark.parametrize("kind", MAKERS)
def test_one_person_moves_the_encoded_sum_by_the_clip_norm(
    kind, people, source, tmp_path
):
    finite = people.subset([0, 1, 2, 5, 6, 7])  # the store refuses NaN
    maker = dataclasses.replace(MAKERS[kind](pool_of(source)), visits=2)
    encoded = encode_views(network_of(), maker, finite, cache_dir=tmp_path)
    plan = plan_for(len(finite), batch=4, clip=CLIP, record="person")
    model = DPMixModel(network_of(), plan=plan, views=encoded, seed=1)
    moved = moved_by(model, finite, np.arange(len(finite)), update=3)
    assert 0.999 < max(moved) <= 1 + 1e-5


def test_encoded_visits_are_of_a_persons_own_images(people, tmp_path):
    """A visit's features are what the front makes of images drawn at that turn."""
    few = people.subset([0, 2, 6])
    maker = views.ViewMaker(base=3, visits=3)
    store = encode_views(
        network_of(), maker, few, cache_dir=tmp_path, dtype="float32"
    ).store
    front = encoding.split_frozen_front(network_of())[0]
    for visit in range(3):
        features, classes, weights = store.read(np.arange(3), np.full(3, visit))
        images, labels = few.draw(np.arange(3), encoding._IMAGES_KEY, np.full(3, visit))
        expected = np.stack([front(one[:3]) for one in images])
        np.testing.assert_allclose(features, expected, atol=1e-6)
        np.testing.assert_array_equal(classes[..., 0], labels[:, :3])
        assert (weights[..., 0] == 1).all()


def test_the_largest_person_changes_nobody_else_s_gradient(digits):
    """With twenty people of two images: the sum without them is the same to the bit."""
    images, labels = digits.train.read(np.arange(43))
    owners = np.repeat(np.arange(21), [2] * 20 + [3])
    both = ArraySource(images, labels)
    people = PeopleSource(both, owners, max_images=8)
    others = PeopleSource(both.subset(np.arange(40)), owners[:40], max_images=8)
    sums = []
    for source in (people, others):
        plan = plan_for(len(source), record="person")
        network = tiny_network()
        network.set_weights([np.full(w.shape, 0.1) for w in network.get_weights()])
        model = DPMixModel(network, plan=plan, views=views.ViewMaker(base=4), seed=1)
        ids = np.arange(20)
        batch = source.draw(ids, np.array([1, 2]), np.zeros(20, int))
        sums.append(model.clipped_gradient_sum(*batch, ids=ids))
    for one, other in zip(*sums, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("kind", MAKERS)
def test_no_view_depends_on_another_person(kind, people, source):
    maker = MAKERS[kind](pool_of(source))
    ids = np.array([0, 1, 2, 5, 6])
    images, numbers = people.draw(ids, np.array([1, 2]), np.zeros_like(ids))
    labels = np.eye(10, dtype=np.float32)[numbers]
    before = maker(images, labels, seed=1, ids=ids)
    changed, changed_labels = images.copy(), labels.copy()
    changed[2], changed_labels[2] = 1 - images[2], np.roll(labels[2], 1, axis=-1)
    after = maker(changed, changed_labels, seed=1, ids=ids)
    rest = [0, 1, 3, 4]
    for one, other in zip(before, after, strict=True):
        np.testing.assert_array_equal(one.numpy()[rest], other.numpy()[rest])
    assert (before[0][2] != after[0][2]).numpy().any()


def test_base_views_take_a_persons_images_in_turn_with_their_labels(people):
    maker = views.ViewMaker(base=6)
    images, numbers = people.draw(np.array([2]), np.array([1, 2]), np.array([0]))
    made, labels = maker(images, np.eye(10, dtype=np.float32)[numbers], seed=1)
    turn = np.arange(6) % 4
    np.testing.assert_array_equal(made[0], images[0][turn])
    np.testing.assert_array_equal(np.argmax(labels[0], -1), numbers[0][turn])


def test_mixed_views_blend_different_images_of_the_person(people):
    maker = views.dp_mix_self(base=4, mixed=8, augment="none")
    images, numbers = people.draw(np.array([2]), np.array([1, 2]), np.array([0]))
    labels = np.eye(10, dtype=np.float32)[numbers]
    seed = np.array([5, 6])
    made, soft = maker.one_example(images[0], labels[0], seed)
    first, second, lam = (np.asarray(part) for part in maker.pairs(seed, (8, 8, 1)))
    assert len(set(zip(first, second, strict=True))) > 3
    for place, (u, v, weight) in enumerate(zip(first, second, lam, strict=True)):
        blend = weight * images[0, u] + (1 - weight) * images[0, v]
        np.testing.assert_allclose(made[4 + place], blend, atol=1e-6)
        blend = weight * labels[0, u] + (1 - weight) * labels[0, v]
        np.testing.assert_allclose(soft[4 + place], blend, atol=1e-6)


def test_the_gradient_is_of_the_mean_loss_of_the_persons_views(people):
    """Against Keras's own loss on views put together by hand; longer than no clip."""
    network = tiny_network()
    plan = plan_for(len(people), clip=1e6, record="person")
    model = DPMixModel(network, plan=plan, views=views.ViewMaker(base=4), seed=1)
    images, numbers = people.draw(np.array([6]), np.array([1, 2]), np.array([0]))
    total = model.clipped_gradient_sum(images, numbers, ids=np.array([6]))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    with tf.GradientTape() as tape:
        value = loss(numbers[0], network(images[0], training=True))
    for ours, theirs in zip(
        total, tape.gradient(value, network.trainable_variables), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


def test_fit_and_statement_speak_of_people(source):
    people = PeopleSource(source, np.arange(200) // 4)
    plan = plan_for(50, batch=10, updates=3, record="person")
    model = DPMixModel(
        tiny_network(), plan=plan, views=views.dp_mix_self(base=3, mixed=2, padding=1)
    )
    model.compile(keras.optimizers.SGD(0.1), metrics=["accuracy"])
    model.fit(people, validation_data=people, verbose=0)
    said = model.statement()
    assert "adding or removing one person with all their images and labels" in said
    assert "each of 50 people joined" in said and "the number of people" in said
    assert "one example" not in said and "each person's gradient" in said
    assert "people who appear under more than one name" in said
    with pytest.raises(DPMixError, match="protects one person and each record"):
        model.fit(source)


def test_examples_and_people_are_never_added_up(source):
    network = tiny_network()
    people = PeopleSource(source, np.arange(200) // 4)
    plan = plan_for(50, batch=10, updates=1, record="person")
    maker = views.ViewMaker()
    model = DPMixModel(network, plan=plan, views=maker)
    model.compile("sgd")
    model.fit(people, verbose=0)
    other = plan_for(200)
    with pytest.raises(DPMixError, match="one example and one person"):
        DPMixModel(network, plan=other, views=maker)
    ledger = model.ledger
    mixed = ledger.joined(type(ledger).planned(other))
    with pytest.raises(DPMixError, match="no epsilon"):
        state_guarantee(mixed, other)


def test_batches_of_ones_own_must_hold_what_the_plan_protects(source, tmp_path):
    people = PeopleSource(source, np.arange(200) // 4)
    images, labels = source.arrays()
    single = tf.data.Dataset.from_tensors((images[:4], labels[:4]))
    grouped = tf.data.Dataset.from_tensors(people.read(np.arange(3)))
    for record, right, wrong in (
        ("example", single, grouped),
        ("person", grouped, single),
    ):
        plan = plan_for(50, record=record)
        model = DPMixModel(tiny_network(), plan=plan, views=views.ViewMaker())
        model.compile("sgd")
        with pytest.raises(DPMixError, match=f"protects one {record}, whose images"):
            model.fit(wrong, assume_poisson=True)
        assert model.updates == 0
        model.fit(right, assume_poisson=True, steps_per_epoch=1, verbose=0)
    encoded = encode_views(
        network_of(), views.ViewMaker(visits=1), source, cache_dir=tmp_path
    )
    model = DPMixModel(network_of(), plan=plan_for(200), views=encoded)
    model.compile("sgd")
    with pytest.raises(DPMixError, match="found by an example's number"):
        model.fit(single, assume_poisson=True)


def test_weights_of_another_kind_of_record_are_not_loaded(source, tmp_path):
    people = PeopleSource(source, np.arange(200) // 4)
    plan = plan_for(50, batch=10, updates=1, record="person")
    model = DPMixModel(tiny_network(), plan=plan, views=views.ViewMaker())
    model.compile("sgd")
    model.fit(people, verbose=0)
    model.save_weights(tmp_path / "x.weights.h5")
    other = DPMixModel(tiny_network(), plan=plan_for(200), views=views.ViewMaker())
    other.compile("sgd")
    before = other.network.get_weights()
    with pytest.raises(ValueError, match="one example and one person"):
        other.load_weights(tmp_path / "x.weights.h5")
    for one, two in zip(before, other.network.get_weights(), strict=True):
        np.testing.assert_array_equal(one, two)


def test_evaluation_of_people_is_of_their_images(source):
    people = PeopleSource(source, np.arange(200) // 4)
    network = tiny_network()
    predict = make_predict(network)
    by_person, by_image = measure(predict, people), measure(predict, source)
    assert by_person.overall == by_image.overall and len(by_person.labels) == 200


def test_refused_before_anything_is_spent(source):
    people = PeopleSource(source, np.arange(200) // 4)
    plan = plan_for(50, batch=10, record="person", sensitivity=2.0)
    with pytest.raises(DPMixError, match="blends different records"):
        DPMixModel(tiny_network(), plan=plan, views=views.NaiveMixup(microbatch=2))
    plan = plan_for(50, batch=10, record="person")
    model = DPMixModel(tiny_network(), plan=plan, views=views.ViewMaker(visits=2))
    model.compile("sgd")
    with pytest.raises(DPMixError, match="must be encoded before training"):
        model.fit(people)
    assert model.updates == 0
    with pytest.raises(DPMixError, match="record must be one of"):
        plan_for(50, record="patient")
