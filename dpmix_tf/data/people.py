"""PeopleSource: records of one person's images; the unit of privacy is the person."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from dpmix_tf.data.sources import ExampleSource, digest
from dpmix_tf.errors import DPMixError
from dpmix_tf.privacy.plan import PERSON


class PeopleSource(ExampleSource):
    """People, each with all of their images, as records to be sampled and clipped.

    A record is drawn, made into views and clipped as a whole, so that a plan made with
    record="person" and num_examples=len(people) protects a person with any number of
    images. At each update up to `slots` of a person's images are read, at random and
    none twice before all have been; the base views are made of them in turn, and mixed
    views blend any two of the person's views. What is made of one person depends on
    nobody else, and has one gradient, which is clipped once.

    Example:
      people = dpmix_tf.PeopleSource(images, patients)
      plan = dpmix_tf.PrivacyPlan.for_epsilon(
          epsilon=8.0, delta=1e-5, num_examples=len(people), record="person",
          expected_batch_size=256, updates=100)
      model = dpmix_tf.DPMixModel(network, plan=plan, views=views)
      model.fit(people)

    Args:
      examples: all images of all people.
      people: whose each image is, a name or number per image.
      max_images: images of a person that are read at an update, 1 or more; public.
        More than the view maker has base views are of no use.

    Attributes:
      examples: all images of all people, one by one.
      people: name of each person, by record, in the order of the names.
      slots: images per record, max_images: whoever has fewer fills them repeatedly.
        Were it as many as anybody has, one person would change what others' views are.

    Raises:
      DPMixError: there is not one non-empty name per image, max_images is below 1, or
        `examples` are people already.
    """

    record = PERSON
    slots: int
    people: np.ndarray

    def __init__(
        self,
        examples: ExampleSource,
        people: Sequence[Any] | np.ndarray,
        *,
        max_images: int = 16,
    ):
        names = _names(people, len(examples))
        if examples.record == PERSON:
            raise DPMixError("The examples are people already. Give their images.")
        if max_images < 1:
            raise DPMixError(f"max_images must be 1 or more, received: {max_images}.")
        people, owners, counts = np.unique(
            names, return_inverse=True, return_counts=True
        )
        order = np.argsort(owners, kind="stable")
        self._set(examples, people, np.split(order, np.cumsum(counts)[:-1]), max_images)

    def _set(self, examples, people, groups, slots) -> None:
        """Takes the people's names and the indices, in `examples`, of their images."""
        self._examples, self._groups = examples, groups
        self.people = people.astype(str)
        self.slots = slots
        self.class_names = examples.class_names
        self.image_shape = examples.image_shape
        self.image_dtype = examples.image_dtype
        self.task = examples.task

    def __len__(self) -> int:
        """Number of people."""
        return len(self.people)

    @property
    def examples(self) -> ExampleSource:
        """All images of all people, one by one."""
        return self._examples

    def images_of(self, person: int) -> np.ndarray:
        """Indices, in `examples`, of the images of one record."""
        return self._groups[person]

    def read(self, indices):
        """Reads people's first images in order: [n,slots,H,W,C]; int32 [n,slots]."""
        return self._gather([self.images_of(int(person)) for person in indices])

    def draw(self, ids, key, turns):
        """Reads a random choice of each person's images, another one at each turn.

        What is chosen of a person depends on nobody else.
        """
        words = np.asarray(key, np.int64).view(np.uint64)

        def shuffled(person, turn):
            own = self.images_of(person)
            # A counter of 256 bits, of which a draw moves only the lowest word.
            bits = np.random.Philox(key=words, counter=[0, person, turn, 0])
            return own[np.argsort(np.random.Generator(bits).random(len(own)))]

        pairs = zip(np.asarray(ids).tolist(), np.asarray(turns).tolist(), strict=True)
        return self._gather([shuffled(person, turn) for person, turn in pairs])

    def _gather(self, chosen: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Reads the first `slots` of each record's images, again from the start."""
        rows = np.empty((len(chosen), self.slots), np.int64)
        for row, images in zip(rows, chosen, strict=True):
            row[:] = np.resize(images[: self.slots], self.slots)
        read, which = np.unique(rows, return_inverse=True)
        which = which.reshape(rows.shape)
        images, labels = self._examples.read(read)
        return images[which], labels[which]

    def examine(self, indices=None):
        """Examines the images of some people, person by person; by default of all."""
        people = range(len(self)) if indices is None else indices
        parts = [self.images_of(int(person)) for person in people]
        return self._examples.examine(np.concatenate(parts) if parts else np.array([]))

    def fingerprint(self) -> str:
        """SHA-256 of all images and labels, and of which belong together."""
        sizes = np.array([len(images) for images in self._groups])
        known = (self.slots, sizes.tobytes(), np.concatenate(self._groups).tobytes())
        return digest(self._examples.fingerprint().encode(), *known).hex()

    def names(self) -> list[str]:
        """Returns each person's name: data sets are split by them, never within."""
        return self.people.tolist()

    def subset(self, indices) -> "PeopleSource":
        """Returns a source of the people at `indices`, each with all their images."""
        indices = np.asarray(indices, np.int64)
        groups = [self._groups[person] for person in indices]
        ends = np.cumsum([len(images) for images in groups])
        chosen = PeopleSource.__new__(PeopleSource)
        chosen._set(
            self._examples.subset(np.concatenate(groups)),
            self.people[indices],
            np.split(np.arange(ends[-1]), ends[:-1]),
            self.slots,
        )
        return chosen


def _names(people: Sequence[Any] | np.ndarray, count: int) -> np.ndarray:
    """Returns one name or number per image; refuses missing ones."""
    given: np.ndarray = np.asarray(people)
    if given.shape != (count,):
        raise DPMixError(
            f"people must name a person for each of {count} images; received: shape="
            f"{given.shape}."
        )
    if given.dtype.kind in "iu":
        return given
    names = np.char.strip(given.astype(str))
    # What None, NaN and blank cells are as text; all together would be one person.
    nameless = int(np.isin(np.char.lower(names), ("", "nan", "none", "<na>")).sum())
    if nameless:
        raise DPMixError(
            f"{nameless} images have no person's name: all of them together would "
            "count as one person. Name these people, or leave the images out."
        )
    return names
