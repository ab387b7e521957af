"""DP-Mix_Diff: what the pool adds, and that it adds nothing private."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from dpmix_tf import views
from dpmix_tf.errors import DPMixError
from dpmix_tf.synthetic import SyntheticPool
from dpmix_tf.views.distinct import distinct

CLASSES = 4
SEED = tf.constant([5, 6], tf.int64)


def pool_of(count, *, per_class=None):
    """Images whose every pixel says which image it is."""
    labels = np.sort(np.arange(count) % CLASSES).astype(np.int32)
    images = np.zeros((count, 8, 8, 1), np.uint8)
    images += np.arange(count, dtype=np.uint8)[:, None, None, None]
    return SyntheticPool(
        images=images,
        labels=labels,
        class_names=tuple("abcd"),
        digest="",
    )


def maker(**settings):
    settings = {"base": 3, "mixed": 4, "synthetic": 2, "augment": "none"} | settings
    settings.setdefault("pool", pool_of(40))
    return views.ViewMaker(**settings)


def examples(count=5, seed=0):
    random = np.random.default_rng(seed)
    images = random.random((count, 8, 8, 1), dtype=np.float32)
    return images, np.eye(CLASSES, dtype=np.float32)[np.arange(count) % CLASSES]


def drawn_indices(made):
    return np.round(made[..., 0, 0, 0] * 255).astype(int)


def test_the_preset_makes_the_published_number_of_views():
    assert views.dp_mix_diff(pool=pool_of(40)).views_per_example == 36


def test_views_come_in_the_order_base_synthetic_mixed():
    images, labels = examples()
    made, soft = maker()(images, labels, seed=1)
    assert made.shape == (5, 9, 8, 8, 1)
    for position in range(3):
        np.testing.assert_array_equal(made[:, position], images)
    indices = drawn_indices(made.numpy()[:, 3:5])
    np.testing.assert_array_equal(
        soft.numpy()[:, 3:5].argmax(-1), pool_of(40).labels[indices]
    )
    np.testing.assert_allclose(soft.numpy().sum(-1), 1, atol=1e-6)


def test_mixed_labels_are_exactly_the_blend_of_their_partners():
    images, labels = examples(1)
    make_views = maker(mixed=60, alpha=1.0)
    made, soft = make_views.one_example(tf.constant(images[0]), labels[0], SEED)
    made, soft = made.numpy(), soft.numpy()
    first, second, lam = (
        part.numpy() for part in make_views.pairs(SEED, images.shape[1:])
    )
    assert np.all(first != second) and first.max() == second.max() == 4
    expected = lam[:, None] * soft[first] + (1 - lam[:, None]) * soft[second]
    np.testing.assert_allclose(soft[5:], expected, atol=1e-6)
    weight = lam[:, None, None, None]
    np.testing.assert_allclose(
        made[5:], weight * made[first] + (1 - weight) * made[second], atol=1e-6
    )
    assert np.any((soft[5:] > 0.01).sum(-1) == 2)


def test_every_image_of_the_pool_is_drawn_as_often_and_never_twice_for_one_example():
    images, labels = examples(1500)
    make_views = maker(base=1, mixed=0, synthetic=4, pool=pool_of(20))
    made, _ = tf.function(lambda x, y: make_views(x, y, seed=3))(images, labels)
    indices = drawn_indices(made.numpy()[:, 1:])
    assert all(len(set(row)) == 4 for row in indices)
    counts = np.bincount(indices.ravel(), minlength=20)
    # Chi-square with 19 degrees of freedom; drawing without repetition only lowers it.
    assert np.sum((counts - 300) ** 2 / 300) < 43.8
    # And each pair of images meets as often.
    pairs = np.zeros((20, 20))
    for row in indices:
        pairs[np.ix_(row, row)] += 1
    meetings = pairs[~np.eye(20, dtype=bool)]
    assert abs(meetings - 1500 * 12 / 380).max() < 5.5 * np.sqrt(1500 * 12 / 380)


@pytest.mark.parametrize(("count", "size"), [(1, 1), (3, 3), (2, 5)])
def test_distinct_numbers_are_distinct_and_below_the_size(count, size):
    seen = set()
    draws = tf.random.stateless_uniform([40, count, 2], [1, 2])
    for row in distinct(tf.constant([[size]]), draws).numpy():
        values = sorted(row.tolist())
        assert len(set(values)) == count and values[0] >= 0 and values[-1] < size
        seen.update(values)
    assert seen == set(range(size))


def test_draws_change_with_the_visit_and_the_example():
    images, labels = examples()
    made = [maker(synthetic=3)(images, labels, seed=seed)[0].numpy() for seed in (1, 2)]
    assert np.any(drawn_indices(made[0][:, 3:6]) != drawn_indices(made[1][:, 3:6]))
    rows = {tuple(row) for row in drawn_indices(made[0][:, 3:6])}
    assert len(rows) > 1


def test_no_view_depends_on_another_private_example():
    images, labels = examples()
    ids = np.array([5, 2, 9, 7, 1])
    make_views = maker(augment="crop", padding=1)
    before, _ = make_views(images, labels, seed=1, ids=ids)
    rest = [0, 1, 3, 4]
    after, _ = make_views(images[rest], labels[rest], seed=1, ids=ids[rest])
    np.testing.assert_allclose(before.numpy()[rest], after, rtol=0, atol=1e-6)


def test_only_mixed_views_can_enter_the_mean():
    images, labels = examples()
    everything, all_labels = maker()(images, labels, seed=1)
    only, only_labels = maker(only_mixed=True)(images, labels, seed=1)
    assert maker(only_mixed=True).views_per_example == 4
    np.testing.assert_array_equal(everything[:, 5:], only)
    np.testing.assert_array_equal(all_labels[:, 5:], only_labels)


def test_labels_only_blends_labels_and_keeps_the_first_partners_pixels():
    images, labels = examples(1)
    settings = dict(mixed=20, alpha=1.0)
    made, soft = maker(labels_only=True, **settings).one_example(
        tf.constant(images[0]), labels[0], SEED
    )
    _, blended = maker(**settings).one_example(tf.constant(images[0]), labels[0], SEED)
    first, _, _ = maker(**settings).pairs(SEED, images.shape[1:])
    np.testing.assert_array_equal(made[5:], tf.gather(made, first))
    np.testing.assert_array_equal(soft, blended)


def test_same_class_draws_from_the_examples_own_class():
    images, labels = examples(40)
    _, soft = maker(same_class=True, synthetic=3)(images, labels, seed=1)
    own = np.repeat(labels.argmax(-1)[:, None], 3, 1)
    np.testing.assert_array_equal(soft.numpy()[:, 3:6].argmax(-1), own)


def test_a_mapped_pool_gives_the_same_views_as_one_in_memory(tmp_path):
    whole = pool_of(40)
    mapped = np.memmap(tmp_path / "x", np.uint8, "w+", shape=whole.images.shape)
    mapped[:] = whole.images
    images, labels = examples()
    one, _ = maker(pool=whole)(images, labels, seed=1)
    other, _ = maker(pool=dataclasses.replace(whole, images=mapped))(
        images, labels, seed=1
    )
    np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"pool": None}, "need a pool"),
        ({"synthetic": 41}, "the pool holds 40"),
        ({"synthetic": 11, "same_class": True}, "the class 'a' holds 10"),
        ({"only_mixed": True, "mixed": 0}, "only_mixed"),
        ({"synthetic": -1}, "synthetic must be"),
    ],
)
def test_impossible_draws_are_refused(change, words):
    with pytest.raises(DPMixError, match=words):
        maker(**change)
