import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf

from dpmix_tf import views
from dpmix_tf.errors import DPMixError
from dpmix_tf.views.augment import AUGMENTATIONS, Augmentation
from dpmix_tf.views.mixers import MIXERS

CLASSES = 4


def examples(count=5, shape=(12, 12, 3), seed=0):
    random = np.random.default_rng(seed)
    images = random.random((count, *shape), dtype=np.float32)
    labels = np.eye(CLASSES, dtype=np.float32)[random.integers(0, CLASSES, count)]
    return images, labels


def numbers(count, draws):
    return tf.random.stateless_uniform([count, draws], [1, 2])


@pytest.mark.parametrize(
    ("augment", "mixer"),
    [
        *((augment, "mixup") for augment in AUGMENTATIONS),
        *(("crop_flip", mixer) for mixer in MIXERS),
        ("crop_flip", "mixup:0.5,fmix:0.5"),
    ],
)
def test_no_view_depends_on_another_example(augment, mixer):
    make_views = views.dp_mix_self(base=3, mixed=2, augment=augment, mixer=mixer)
    images, labels = examples()
    ids = np.array([5, 2, 9, 7, 1])
    before, before_labels = make_views(images, labels, seed=1, ids=ids)

    changed, changed_labels = images.copy(), labels.copy()
    changed[2], changed_labels[2] = 1 - images[2], np.roll(labels[2], 1)
    after, after_labels = make_views(changed, changed_labels, seed=1, ids=ids)
    rest = [0, 1, 3, 4]
    np.testing.assert_array_equal(before.numpy()[rest], after.numpy()[rest])
    np.testing.assert_array_equal(
        before_labels.numpy()[rest], after_labels.numpy()[rest]
    )
    assert np.any(before[2] != after[2])

    alone, _ = make_views(images[rest], labels[rest], seed=1, ids=ids[rest])
    # Elsewhere in a vector register, a blend may round differently.
    np.testing.assert_allclose(before.numpy()[rest], alone, rtol=0, atol=1e-6)


@pytest.mark.parametrize("augment", AUGMENTATIONS)
def test_views_follow_the_seed(augment):
    make_views = views.dp_mix_self(base=3, mixed=2, augment=augment)
    images, labels = examples()
    one, _ = make_views(images, labels, seed=1)
    np.testing.assert_array_equal(one, make_views(images, labels, seed=1)[0])
    if augment != "none":
        assert np.any(one != make_views(images, labels, seed=2)[0])
        assert np.any(one != make_views(images, labels)[0])
    assert one.numpy().min() >= 0 and one.numpy().max() <= 1


@pytest.mark.parametrize("augment", ["affine", "resized_crop_flip"])
def test_the_views_of_one_example_are_pairwise_different(augment):
    images, labels = examples()
    made, _ = views.dp_mix_self(base=8, mixed=6, augment=augment, alpha=1.0)(
        images, labels, seed=1
    )
    for pool in made.numpy():
        assert len({view.tobytes() for view in pool}) == len(pool)


def test_crops_and_flips_are_drawn_independently_for_each_view():
    # 9 x 9 offsets x 2 flips: independent draws collide as often as birthdays do.
    images, labels = examples(200, shape=(12, 12, 1))
    made, _ = views.self_aug(base=16, augment="crop_flip")(images, labels, seed=1)
    same = [
        np.array_equal(pool[i], pool[j])
        for pool in made.numpy()
        for i in range(16)
        for j in range(i)
    ]
    expected = 1 / (9 * 9 * 2)
    spread = np.sqrt(expected * (1 - expected) / len(same))
    assert abs(np.mean(same) - expected) < 5 * spread


def test_a_crop_is_an_exact_window_and_every_offset_is_as_likely():
    grid = tf.reshape(tf.range(64.0), [1, 8, 8, 1])
    count = 4000
    crop = Augmentation("crop", (8, 8, 1), 2)
    made = crop(tf.repeat(grid, count, 0), numbers(count, crop.draws)).numpy()
    padded = np.pad(grid[0, ..., 0], 2, mode="reflect")
    windows = {
        padded[top : top + 8, left : left + 8].tobytes(): (top, left)
        for top in range(5)
        for left in range(5)
    }
    offsets = [windows[view[..., 0].tobytes()] for view in made]
    counts = np.bincount([5 * top + left for top, left in offsets], minlength=25)
    spread = np.sqrt(count / 25 * (1 - 1 / 25))
    assert np.all(np.abs(counts - count / 25) < 5 * spread)


def test_flips_happen_half_the_time():
    images = tf.repeat(tf.random.uniform([1, 4, 4, 1]), 2000, 0)
    flip = Augmentation("flip", (4, 4, 1), 0)
    flipped = flip(images, numbers(2000, flip.draws))
    share = np.mean(np.any(flipped != images, axis=(1, 2, 3)))
    assert abs(share - 0.5) < 5 * 0.5 / np.sqrt(2000)


def test_mixed_views_are_the_blends_that_pairs_describes():
    make_views = views.dp_mix_self(base=4, mixed=50, augment="crop", alpha=1.0)
    images, labels = examples(1)
    seed = tf.constant([8, 9], tf.int64)
    made, soft = make_views.one_example(tf.constant(images[0]), labels[0], seed)
    first, second, lam = (part.numpy() for part in make_views.pairs(seed, (8, 8, 1)))
    assert np.all(first != second)
    base = made.numpy()[:4]
    weight = lam[:, None, None, None]
    expected = weight * base[first] + (1 - weight) * base[second]
    np.testing.assert_allclose(made[4:], expected, atol=1e-6)
    np.testing.assert_allclose(soft, np.repeat(labels, 54, 0), atol=1e-6)


def test_pairs_are_uniform_over_ordered_pairs_of_different_views():
    make_views = views.dp_mix_self(base=4, mixed=60_000)
    first, second, _ = make_views.pairs(tf.constant([1, 2], tf.int64), (8, 8, 1))
    counts = np.bincount(4 * first + second, minlength=16).reshape(4, 4)
    assert np.all(np.diag(counts) == 0)
    expected = 60_000 / 12
    off_diagonal = counts[~np.eye(4, dtype=bool)]
    assert np.all(np.abs(off_diagonal - expected) < 5 * np.sqrt(expected))


def test_labels_sum_to_one_and_base_views_come_first():
    images, labels = examples()
    make_views = views.dp_mix_self(base=3, mixed=2, augment="none")
    made, soft = make_views(images, labels, seed=1)
    assert made.shape == (5, 5, 12, 12, 3) and soft.shape == (5, 5, CLASSES)
    np.testing.assert_allclose(np.sum(soft, axis=-1), 1, atol=1e-6)
    for position in range(3):
        np.testing.assert_array_equal(made[:, position], images)


@pytest.mark.parametrize(("low", "high"), [(0.0, 255.0), (-1.0, 1.0)])
def test_float_views_keep_the_range_of_their_images(low, high):
    images, labels = examples()
    images = low + (high - low) * images
    made, _ = views.dp_mix_self(base=4, mixed=4)(images, labels, seed=1)
    assert made.numpy().min() >= low and made.numpy().max() <= high
    assert made.numpy().max() > low + 0.9 * (high - low)


def test_uint8_images_become_floats_from_zero_to_one():
    images = np.full((2, 8, 8, 1), 255, np.uint8)
    made, _ = views.self_aug(base=2)(images, np.eye(2, dtype=np.float32))
    np.testing.assert_allclose(made, 1.0)


def test_presets_make_the_published_numbers_of_views():
    assert views.no_augmentation().views_per_example == 1
    assert views.self_aug().views_per_example == 16
    assert views.dp_mix_self().views_per_example == 34


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"base": 0}, "base must be"),
        ({"mixed": -1}, "mixed must be"),
        ({"base": 1, "mixed": 2}, "two different views"),
        ({"alpha": 0.0}, "alpha must be"),
        ({"padding": -1}, "padding must be"),
        ({"augment": "blur"}, "augment must be one of"),
    ],
)
def test_impossible_view_makers_are_refused(change, words):
    with pytest.raises(DPMixError, match=words):
        dataclasses.replace(views.dp_mix_self(), **change)


def test_images_an_augmentation_cannot_take_are_refused():
    with pytest.raises(DPMixError, match="needs 3 channels"):
        Augmentation("randaugment", (8, 8, 1), 1)
    with pytest.raises(DPMixError, match="Lower padding"):
        Augmentation("crop", (4, 4, 1), 4)
    with pytest.raises(DPMixError, match="one-hot labels"):
        views.self_aug()(np.zeros((2, 8, 8, 1)), np.zeros(2))


def test_a_picture_of_the_views_is_drawn(tmp_path):
    from dpmix_tf.views.preview import draw_views

    images, _ = examples(1)
    path = tmp_path / "views.png"
    draw_views(
        views.dp_mix_self(base=3, mixed=2),
        images[0],
        1,
        ("a", "b", "c", "d"),
        seed=0,
        path=path,
    )
    assert path.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("augment", AUGMENTATIONS)
def test_views_stay_float32_under_other_policies(augment):
    images, labels = examples(2, (16, 16, 3))
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        # A padding that no other test has, so that its layers are made here.
        make_views = views.dp_mix_self(base=2, mixed=1, augment=augment, padding=7)
        made, made_labels = make_views(images, labels, seed=1)
    finally:
        keras.config.set_dtype_policy("float32")
    assert made.dtype == made_labels.dtype == tf.float32
