"""ExampleSource: private examples by index, from arrays, TFDS or image folders."""

import abc
import hashlib
from collections.abc import Sequence
from concurrent import futures
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from PIL import Image

from dpmix_tf.errors import DPMixError
from dpmix_tf.files import local_path
from dpmix_tf.images import (
    IMAGE_SUFFIXES,
    class_folders,
    fit_image,
    image_files,
    read_image,
)

# Threads that decode images of one batch; decoding releases the interpreter's lock.
_DECODERS = 8


class ExampleSource(abc.ABC):
    """Labelled images by index. An example is one (image, label); it has one index.

    Attributes:
      class_names: one name a class; labels index it.
      image_shape: (H, W, C) of every image.
      image_dtype: numpy dtype of the images; uint8 means [0, 255].
    """

    class_names: tuple[str, ...]
    image_shape: tuple[int, int, int]
    image_dtype: np.dtype = np.dtype(np.uint8)

    @abc.abstractmethod
    def __len__(self) -> int:
        """Number of examples."""

    @abc.abstractmethod
    def read(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Reads examples, in the order asked for.

        Args:
          indices: integers [n] in [0, len(self)); n may be 0.

        Returns:
          images [n,H,W,C] of image_dtype; labels, int32 [n].
        """

    def fingerprint(self) -> str:
        """SHA-256 that tells this data from other data; reads few examples or none.

        A resumed run repeats noise it has used before, which is safe only on the very
        same examples.
        """
        return _digest(self.class_names, self.image_shape, len(self))

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

    def __len__(self) -> int:
        return len(self._indices)

    def read(self, indices):
        return self._parent.read(self._indices[np.asarray(indices, np.int64)])

    def fingerprint(self) -> str:
        return _digest(self._parent.fingerprint(), self._indices.tobytes())


class ArraySource(ExampleSource):
    """Examples in memory, or in a memory-mapped array.

    Args:
      images: [n,H,W,C], uint8 in [0, 255] or float32 (any range; [0, 1] is usual).
      labels: integers [n] in [0, classes).
      class_names: names by label; default "0", "1", ...

    Raises:
      DPMixError: shapes, dtypes or labels that do not fit together.
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
        if labels.shape != images.shape[:1] or labels.dtype.kind not in "iu":
            raise DPMixError(
                f"labels must be integers of shape {images.shape[:1]}, one an image; "
                f"received: dtype={labels.dtype}, shape={labels.shape}."
            )
        if not len(images):
            raise DPMixError("The source holds no examples.")
        names = class_names or [str(label) for label in range(int(labels.max()) + 1)]
        if labels.min() < 0 or labels.max() >= len(names):
            raise DPMixError(
                f"labels must be in [0, {len(names)}), one of {len(names)} classes; "
                f"received values from {labels.min()} to {labels.max()}."
            )
        self._images = images
        self._labels = labels.astype(np.int32)
        self.class_names = tuple(names)
        self.image_shape = tuple(images.shape[1:])
        self.image_dtype = images.dtype

    def __len__(self) -> int:
        """Number of examples."""
        return len(self._labels)

    def read(self, indices):
        """Copies rows out of the arrays."""
        return np.asarray(self._images[indices]), self._labels[indices]

    def fingerprint(self) -> str:
        """Covers all labels and up to a hundred images."""
        step = max(1, len(self) // 100)
        some = np.asarray(self._images[::step]).tobytes()
        return _digest(super().fingerprint(), self._labels.tobytes(), some)


class _DecodedSource(ExampleSource):
    """Examples that are decoded on demand, several at a time, resized once."""

    def __init__(self, image_shape, class_names, count):
        self.image_shape = tuple(image_shape)
        self.class_names = tuple(class_names)
        self._count = count

    def __len__(self) -> int:
        return self._count

    @abc.abstractmethod
    def _decode(self, index: int) -> tuple[np.ndarray, int]:
        """Returns one image, uint8 of image_shape, and its label."""

    def read(self, indices):
        """Decodes in parallel."""
        images = np.empty((len(indices), *self.image_shape), np.uint8)
        labels = np.empty(len(indices), np.int32)

        def place(position: int) -> None:
            images[position], labels[position] = self._decode(int(indices[position]))

        with futures.ThreadPoolExecutor(_DECODERS) as pool:
            list(pool.map(place, range(len(indices))))
        return images, labels


class ImageFolderSource(_DecodedSource):
    """A folder with one subfolder of JPEG or PNG images a class.

    Classes are the subfolders in alphabetical order. Images of any size are resized to
    one size, with antialiasing, when they are read.

    Args:
      folder: the folder.
      image_shape: (H, W, C) to convert to; C = 1 is grey, 3 is RGB.
      class_names: expected class names; default the subfolders found.

    Raises:
      DPMixError: no such folder, no images, or classes that do not match.
    """

    def __init__(
        self,
        folder: str | Path,
        image_shape: tuple[int, int, int],
        class_names: Sequence[str] | None = None,
    ):
        folder = local_path(folder, "The image folder")
        if not folder.is_dir():
            raise DPMixError(
                f"Image folder not found: {folder}. Expected one subfolder of images a "
                "class, such as <folder>/cat/1.jpg."
            )
        found = class_folders(folder)
        if class_names is not None and tuple(class_names) != found:
            missing = sorted(set(class_names) - set(found))
            extra = sorted(set(found) - set(class_names))
            raise DPMixError(
                f"The classes of {folder} differ from the expected ones: missing "
                f"{missing}, unexpected {extra}."
            )
        self._files = [
            (path, label)
            for label, name in enumerate(found)
            for path in image_files(folder / name)
        ]
        if not self._files:
            raise DPMixError(
                f"No images in {folder}. Expected one subfolder of "
                f"{', '.join(IMAGE_SUFFIXES)} files a class."
            )
        super().__init__(image_shape, found, len(self._files))

    def _decode(self, index):
        path, label = self._files[index]
        return read_image(path, self.image_shape), label

    def fingerprint(self) -> str:
        """Covers the names and sizes of all files."""
        files = [
            (path.parent.name, path.name, path.stat().st_size, label)
            for path, label in self._files
        ]
        return _digest(super().fingerprint(), files)

    def check(self) -> None:
        """Decodes every image once, so that a broken one is named before training.

        Raises:
          DPMixError: names the first images that cannot be read.
        """

        def broken(position: int) -> str | None:
            try:
                self._decode(position)
            except DPMixError as error:
                return str(error)
            return None

        with futures.ThreadPoolExecutor(_DECODERS) as pool:
            messages = [m for m in pool.map(broken, range(len(self))) if m]
        if messages:
            more = f"\n... and {len(messages) - 5} more" if len(messages) > 5 else ""
            raise DPMixError("\n".join(messages[:5]) + more)


class TfdsSource(_DecodedSource):
    """A prepared TFDS split in ArrayRecord format, decoded on demand.

    Args:
      data_source: `tfds.data_source(...)` of one split.
      image_shape: (H, W, C) to convert to.
      class_names: names by label.
    """

    def __init__(
        self,
        data_source: Any,
        image_shape: tuple[int, int, int],
        class_names: Sequence[str],
    ):
        super().__init__(image_shape, class_names, len(data_source))
        self._data_source = data_source

    def _decode(self, index):
        example = self._data_source[index]
        image = np.asarray(example["image"])
        if image.shape != self.image_shape:
            pixels = image[..., 0] if image.shape[-1] == 1 else image
            image = fit_image(Image.fromarray(pixels), self.image_shape)
        return image, int(example["label"])


def _digest(*parts: Any) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def ordered_batches(source: ExampleSource, batch_size: int) -> tf.data.Dataset:
    """Reads a source once, in order, for evaluation and prediction.

    Args:
      source: the examples.
      batch_size: examples a batch; the last may be smaller.

    Returns:
      tf.data.Dataset of (images [n,H,W,C] of the source's dtype, labels int32 [n]).
    """

    def load(start):
        return source.read(np.arange(start, min(start + batch_size, len(source))))

    def to_batch(start):
        images, labels = tf.numpy_function(
            load, [start], [source.image_dtype, np.dtype(np.int32)]
        )
        return (
            tf.ensure_shape(images, [None, *source.image_shape]),
            tf.ensure_shape(labels, [None]),
        )

    return (
        tf.data.Dataset.range(0, len(source), batch_size)
        .map(to_batch, num_parallel_calls=2, deterministic=True)
        .prefetch(2)
        .with_options(fixed_options())
    )


def fixed_options() -> tf.data.Options:
    """No autotuning: there is nothing to tune.

    Its thread sleeps for up to a minute at a time, and a process that ends waits for it
    now and then.
    """
    options = tf.data.Options()
    options.autotune.enabled = False
    return options
