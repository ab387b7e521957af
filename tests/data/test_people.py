"""Records of people: whose images are read, how often, and what is refused."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpmix_tf.data import ArraySource, PeopleSource, PoissonBatches
from dpmix_tf.errors import DPMixError
from tests.conftest import plan_for

KEY = np.array([3, -4])


def numbered(counts, **more):
    """People with so many images; a pixel's value says which image it is."""
    total = sum(counts)
    images = np.arange(total, dtype=np.float32).reshape(total, 1, 1, 1)
    names = np.repeat([f"p{place:02d}" for place in range(len(counts))], counts)
    order = np.random.default_rng(0).permutation(total)
    source = ArraySource(images[order], (np.arange(total) % 3).astype(int)[order])
    return PeopleSource(source, names[order], **more)


def drawn(people, ids, turns):
    images, labels = people.draw(np.array(ids), KEY, np.array(turns))
    assert (labels == images[..., 0, 0, 0] % 3).all()  # every image keeps its label
    return images[..., 0, 0, 0].astype(int)


def test_a_record_is_one_persons_images_none_twice_before_all():
    people = numbered([1, 3, 50], max_images=8)
    assert len(people) == 3 and people.slots == 8 and people.people[1] == "p01"
    one, three, many = drawn(people, [0, 1, 2], [7, 7, 7])
    assert (one == 0).all()
    assert set(three) == {1, 2, 3} and set(three[:3]) == {1, 2, 3}
    assert (three[3:6] == three[:3]).all()
    assert len(set(many)) == 8 and many.min() >= 4


def test_what_is_drawn_does_not_depend_on_how_many_images_another_person_has():
    few, many = numbered([2, 2, 3], max_images=8), numbered([2, 2, 30], max_images=8)
    assert few.slots == many.slots == 8
    np.testing.assert_array_equal(
        drawn(few, [0, 1], [5, 5]), drawn(many, [0, 1], [5, 5])
    )


def test_every_image_is_read_sooner_or_later():
    people = numbered([1, 50], max_images=8)
    turns = range(100)
    rows = drawn(people, [1] * 100, turns)
    seen, counts = np.unique(rows, return_counts=True)
    assert len(seen) == 50
    # 16 each expected, standard deviation below 4.
    assert counts.min() > 2 and counts.max() < 34
    np.testing.assert_array_equal(rows, drawn(people, [1] * 100, turns))


def test_what_is_drawn_of_one_person_depends_on_nobody_else():
    people = numbered([5, 9, 20, 7], max_images=4)
    together = drawn(people, [0, 1, 2, 3], [2, 2, 2, 2])
    np.testing.assert_array_equal(together[[1, 3]], drawn(people, [1, 3], [2, 2]))
    assert (together[2] != drawn(people, [2], [3])).any()
    alike = numbered([12] * 6, max_images=12)
    orders = drawn(alike, range(6), [0] * 6) - 12 * np.arange(6)[:, np.newaxis]
    assert len(set(map(tuple, orders))) == 6


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 6), min_size=3, max_size=12), st.data())
def test_subsets_keep_people_whole(counts, data):
    people = numbered(counts)
    which = st.lists(st.sampled_from(range(len(counts))), unique=True, min_size=1)
    kept = data.draw(which)
    subset = people.subset(kept)
    assert subset.names() == [people.names()[one] for one in kept]
    assert len(subset.examples) == sum(counts[one] for one in kept)
    for place, one in enumerate(kept):
        ours = subset.examples.read(subset.images_of(place))[0]
        theirs = people.examples.read(people.images_of(one))[0]
        np.testing.assert_array_equal(ours, theirs)


def test_a_fingerprint_tells_who_owns_what():
    source = ArraySource(np.zeros((4, 2, 2, 1), np.uint8), np.arange(4) % 2)
    prints = {
        PeopleSource(source, owners, max_images=most).fingerprint()
        for owners in (["a", "a", "b", "b"], ["a", "b", "a", "b"], ["a", "a", "a", "b"])
        for most in (1, 2)
    }
    assert len(prints) == 6


def test_batches_are_of_people_and_their_images_change_with_the_update(source):
    owners = np.arange(len(source)) // 4
    people = PeopleSource(source, owners, max_images=2)
    plan = plan_for(len(people), batch=30, record="person")
    batches = PoissonBatches(people, plan, seed=5)
    first, second = (batch for _, batch in zip(range(2), batches, strict=False))
    assert first.images.shape[1:] == (2, 8, 8, 1)
    assert first.labels.shape == first.images.shape[:2]
    np.testing.assert_array_equal(first.ids, batches.indices(0))
    both = sorted(set(first.ids.numpy()) & set(second.ids.numpy()))
    assert len(both) > 5
    changed = [
        (first.images.numpy()[list(first.ids).index(one)]
         != second.images.numpy()[list(second.ids).index(one)]).any()
        for one in both
    ]  # fmt: skip
    assert np.mean(changed) > 0.6
    later = next(iter(PoissonBatches(people, plan, seed=5, start=1)))
    np.testing.assert_array_equal(later.images, second.images)


@pytest.mark.parametrize(
    ("people", "more", "words"),
    [
        (["a", "b"], {}, "for each of 3 images; received: shape=(2,)"),
        (["a", "", "b"], {}, "1 images have no person's name"),
        (["a", None, "b"], {}, "1 images have no person's name"),
        ([1.0, float("nan"), 2.0], {}, "1 images have no person's name"),
        (["a", "b", "c"], {"max_images": 0}, "max_images must be 1 or more"),
    ],
)
def test_refused(people, more, words):
    source = ArraySource(np.zeros((3, 2, 2, 1), np.uint8), np.array([0, 1, 1]))
    with pytest.raises(DPMixError) as caught:
        PeopleSource(source, people, **more)
    assert words in str(caught.value)


def test_plan_and_source_must_mean_the_same_record(source):
    people = PeopleSource(source, np.arange(200) // 2)
    with pytest.raises(DPMixError, match="protects one example and each record"):
        PoissonBatches(people, plan_for(100))
    with pytest.raises(DPMixError, match="protects one person and each record"):
        PoissonBatches(source, plan_for(200, record="person"))


def test_people_are_not_grouped_again(source):
    people = PeopleSource(source, np.arange(200) // 2)
    with pytest.raises(DPMixError, match="are people already"):
        PeopleSource(people, np.arange(100))
