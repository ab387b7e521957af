"""ExampleSource: private examples by index, from arrays or TFDS."""

import abc
import hashlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
from tqdm import tqdm

from dpmix_tf.errors import DPMixError
from dpmix_tf.privacy.plan import EXAMPLE
from dpmix_tf.tasks import MULTI_LABEL, SINGLE_LABEL

# Threads that decode the images of a batch; decoding releases the interpreter's lock.
DECODERS = 8

_BLOCK = 500  # examples read at a time when all are read


class Examined(NamedTuple):
    """What is known about n examples once each has been examined.

    Attributes:
      digests: uint8 [n,32], SHA-256 of the image and its label.
      labels: int64 [n]; several labels [n,classes], with -1 where not known.
      sizes: int64 [n,2], stored width and height, before any resizing.
    """

    digests: np.ndarray
    labels: np.ndarray
    sizes: np.ndarray

    @classmethod
    def of(cls, rows: Iterable[tuple[bytes, Any, tuple[int, int]]]) -> "Examined":
        """Builds an instance from rows of (digest, label or labels, size)."""
        rows = list(rows)
        digests = np.frombuffer(b"".join(row[0] for row in rows), np.uint8)
        return cls(
            digests.reshape(-1, hashlib.sha256().digest_size),
            np.nan_to_num([row[1] for row in rows], nan=-1).astype(np.int64),
            np.array([row[2] for row in rows], np.int64).reshape(-1, 2),
        )


class ExampleSource(abc.ABC):
    """Labelled images by index; an example is one (image, label) with one index.

    Attributes:
      class_names: one name per class; labels index it.
      image_shape: (H, W, C) of every image.
      image_dtype: numpy dtype of the images; uint8 means [0, 255].
      record: what one index stands for, and the guarantee protects: EXAMPLE; PERSON in
        a PeopleSource.
      slots: images that `draw` gives of a record; None for an example's own.
      task: SINGLE_LABEL; or MULTI_LABEL: then `labels` are float32 with an axis of one
        number per class, 0, 1, or NaN where not known, wherever the shapes of class
        numbers are given here.
      people: str [len(self)], whose each record is; None if it is not known.
    """

    class_names: tuple[str, ...]
    image_shape: tuple[int, int, int]
    image_dtype: np.dtype = np.dtype(np.uint8)
    record: str = EXAMPLE
    slots: int | None = None
    task: str = SINGLE_LABEL
    people: np.ndarray | None = None

    @abc.abstractmethod
    def __len__(self) -> int:
        """Number of examples."""

    @abc.abstractmethod
    def read(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Reads examples, in the order requested.

        Args:
          indices: integers [n] in [0, len(self)); n may be 0.

        Returns:
          images [n,H,W,C] of image_dtype; labels, int32 [n].
        """

    def draw(
        self, ids: np.ndarray, key: np.ndarray, turns: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Reads records to make views of; an example is the same at every turn.

        Args:
          ids: int64 [n], of the records; some may be equal.
          key: int64 [2], seed of what is drawn; of no importance to the guarantee.
          turns: int64 [n], which time this is that the record is drawn.

        Returns:
          images [n,H,W,C] and labels, int32 [n]; with `slots` [n,slots,H,W,C] and
          [n,slots].
        """
        del key, turns
        read, which = np.unique(ids, return_inverse=True)
        images, labels = self.read(read)
        if np.array_equal(read, ids):  # as in every Poisson-sampled batch
            return images, labels
        return images[which], labels[which]

    @property
    def examples(self) -> "ExampleSource":
        """All images of all records, one by one."""
        return self

    def examine(self, indices: np.ndarray | None = None) -> Examined:
        """Examines the examples one by one; by default all, in order.

        Args:
          indices: integers [n] in [0, len(self)).
        """
        indices = np.arange(len(self)) if indices is None else indices
        height, width, _ = self.image_shape

        def rows():
            for start in progress(range(0, len(indices), _BLOCK), "Reading the data"):
                images, labels = self.read(indices[start : start + _BLOCK])
                for image, label in zip(images, labels, strict=True):
                    content = np.ascontiguousarray(image).tobytes()
                    known = np.asarray(label).tolist()
                    yield digest(content, known), label, (width, height)

        return Examined.of(rows())

    def fingerprint(self) -> str:
        """SHA-256 of all examples, images and labels, in their order.

        A resumed run repeats noise it has used before, which is safe only on exactly
        the same examples; and an evaluation must not use images trained on.
        """
        names, shape = map(str, self.class_names), map(int, self.image_shape)
        known = (*names, *shape, np.dtype(self.image_dtype).str)
        return digest(self.examine().digests.tobytes(), *known).hex()

    def names(self) -> list[str] | None:
        """Returns a permanent name for each example; None if they have only numbers.

        Data sets are split by these names, so that adding examples moves no others.
        """
        return None

    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """Reads all examples; see `read`."""
        return self.read(np.arange(len(self)))

    def subset(self, indices: Sequence[int] | np.ndarray) -> "ExampleSource":
        """Returns a source of the examples at `indices`, renumbered from 0."""
        return _Subset(self, np.asarray(indices, np.int64))


class _Subset(ExampleSource):
    def __init__(self, parent: ExampleSource, indices: np.ndarray):
        self._parent = parent
        self._indices = indices
        self.class_names = parent.class_names
        self.image_shape = parent.image_shape
        self.image_dtype = parent.image_dtype
        self.task = parent.task
        self.record, self.slots = parent.record, parent.slots
        self.people = None if parent.people is None else parent.people[indices]

    def __len__(self) -> int:
        return len(self._indices)

    def read(self, indices):
        return self._parent.read(self._indices[np.asarray(indices, np.int64)])

    def draw(self, ids, key, turns):
        return self._parent.draw(self._indices[np.asarray(ids, np.int64)], key, turns)

    def examine(self, indices=None):
        asked = slice(None) if indices is None else np.asarray(indices, np.int64)
        return self._parent.examine(self._indices[asked])

    def names(self):
        names = self._parent.names()
        return None if names is None else [names[index] for index in self._indices]


class ArraySource(ExampleSource):
    """Examples in memory, or in a memory-mapped array.

    Args:
      images: [n,H,W,C], uint8 in [0, 255] or float32 (any range; [0, 1] is usual).
      labels: integers [n] in [0, classes); or several labels, [n,classes] of 0, 1, and
        NaN where not known.
      class_names: names by label; by default "0", "1", ...

    Raises:
      DPMixError: shapes, dtypes or labels are invalid or do not match.
    """

    def __init__(
        self,
        images: np.ndarray,
        labels: np.ndarray,
        class_names: Sequence[str] | None = None,
    ):
        labels = np.asarray(labels)
        if images.ndim != 4:
            raise DPMixError(
                f"images must have shape [n,H,W,C], received: shape={images.shape}. "
                "Add the channel axis of grey images with images[..., None]."
            )
        if images.shape[3] not in (1, 3):
            raise DPMixError(
                f"images must have 1 or 3 channels, received: shape={images.shape}."
            )
        if images.dtype not in (np.uint8, np.float32):
            raise DPMixError(
                "images must be uint8 in [0, 255] or float32, received: "
                f"dtype={images.dtype}. Convert with images.astype('float32')."
            )
        if not len(images):
            raise DPMixError("The source holds no examples.")
        if labels.ndim == 2 and len(labels) == len(images):
            self.task = MULTI_LABEL
            self._labels = _checked_several(labels)
            count = labels.shape[1]
        elif labels.shape == images.shape[:1] and labels.dtype.kind in "iu":
            self._labels = labels.astype(np.int32)
            count = int(labels.max()) + 1
        else:
            raise DPMixError(
                f"labels must be integers of shape {images.shape[:1]}, one per image, "
                "or several of 0, 1 and NaN per image, along a second axis; received: "
                f"dtype={labels.dtype}, shape={labels.shape}."
            )
        self._images = images
        self.class_names = check_class_names(
            map(str, range(count)) if class_names is None else class_names
        )
        if self.task == SINGLE_LABEL:
            check_labels(labels, len(self.class_names))
        elif count != len(self.class_names):
            raise DPMixError(
                f"There are {len(self.class_names)} class_names for {count} labels per "
                "image."
            )
        _, height, width, channels = images.shape
        self.image_shape = (height, width, channels)
        self.image_dtype = images.dtype

    def __len__(self) -> int:
        """Number of examples."""
        return len(self._labels)

    def read(self, indices):
        """Copies rows out of the arrays."""
        return np.asarray(self._images[indices]), self._labels[indices]


def _checked_several(labels: np.ndarray) -> np.ndarray:
    """Returns several labels per image as float32; refuses other values."""
    if (
        labels.dtype.kind not in "iufb"
        or not (np.isnan(labels) | (labels == 0) | (labels == 1)).all()
    ):
        raise DPMixError(
            "Several labels per image must each be 0, 1, or NaN where not known."
        )
    return labels.astype(np.float32)


def digest(content: bytes, *known: Any) -> bytes:
    """SHA-256 of an item's content and of what else is known about it."""
    return hashlib.sha256(repr(known).encode("utf-8") + b"\0" + content).digest()


def progress(items: Iterable, what: str, total: int | None = None) -> Iterable:
    """Iterates over items, with a progress bar if it takes seconds."""
    return tqdm(items, desc=what, total=total, delay=3, leave=False, dynamic_ncols=True)


def some_of(names: Iterable[str]) -> str:
    """Lists names for a message: the first few, and how many more there are."""
    names = list(names)
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(names[:5]) + more


def check_class_names(names: Iterable[str]) -> tuple[str, ...]:
    """Refuses class names that an exported model could not write, one per line.

    Raises:
      DPMixError: names the first invalid one.
    """
    names = tuple(map(str, names))
    for name in names:
        whole = name.encode(errors="replace").decode() == name
        if not name or name != name.strip() or {"\n", "\r"} & {*name} or not whole:
            raise DPMixError(
                f"The class name {name!r} cannot be a line of a text file. Rename the "
                "class, which for image folders is the folder: no space at either end, "
                "no line breaks, valid UTF-8 only."
            )
    return names


def label_spec(source: ExampleSource, axes: Sequence[int | None]) -> tf.TensorSpec:
    """The shape and dtype of labels of images along some axes."""
    if source.task == MULTI_LABEL:
        return tf.TensorSpec([*axes, len(source.class_names)], tf.float32)
    return tf.TensorSpec(axes, tf.int32)


def check_labels(labels: np.ndarray, classes: int) -> None:
    """Raises DPMixError unless all class numbers that were read are in [0, classes)."""
    if labels.dtype.kind == "f":  # several labels, checked where they come from
        return
    if len(labels) and not 0 <= labels.min() <= labels.max() < classes:
        raise DPMixError(
            f"labels must be in [0, {classes}), one of {classes} classes; the source "
            f"gave labels from {labels.min()} to {labels.max()}."
        )


def ordered_batches(source: ExampleSource, batch_size: int) -> tf.data.Dataset:
    """Reads a source once, in order, for evaluation and prediction.

    Args:
      source: the examples.
      batch_size: examples per batch; the last may be smaller.

    Returns:
      tf.data.Dataset of (images [n,H,W,C], labels), as the source reads them.
    """

    def load(start):
        return source.read(np.arange(start, min(start + batch_size, len(source))))

    specs = (
        tf.TensorSpec([None, *source.image_shape], source.image_dtype),
        label_spec(source, [None]),
    )
    return load_ahead(tf.data.Dataset.range(0, len(source), batch_size), load, specs)


def load_ahead(elements: tf.data.Dataset, load: Callable, specs: Any) -> Any:
    """Loads something for each element, in order, while what came before is used.

    Args:
      elements: scalars, of each of which `load` makes numpy arrays.
      load: an element -> arrays, in the order of `specs`; may run in several threads.
      specs: tf.TensorSpec of the arrays, in a tuple or NamedTuple.

    Returns:
      tf.data.Dataset of tensors, nested like `specs`.
    """
    flat = tf.nest.flatten(specs)

    def to_tensors(element):
        arrays = tf.numpy_function(load, [element], [spec.dtype for spec in flat])
        pairs = zip(arrays, flat, strict=True)
        tensors = [tf.ensure_shape(array, spec.shape) for array, spec in pairs]
        return tf.nest.pack_sequence_as(specs, tensors)

    return (
        elements.map(to_tensors, num_parallel_calls=2, deterministic=True)
        .prefetch(2)
        .with_options(_fixed_options())
    )


def in_order(data: Any, batch_size: int = 500) -> Any:
    """Returns `ordered_batches` of a source's images, and anything else unchanged."""
    if not isinstance(data, ExampleSource):
        return data
    return ordered_batches(data.examples, batch_size)


def _fixed_options() -> tf.data.Options:
    """Returns options without autotuning: there is nothing to tune.

    The autotuning thread sleeps for up to a minute at a time, and a process that ends
    sometimes waits for it.
    """
    options = tf.data.Options()
    options.autotune.enabled = False
    return options
