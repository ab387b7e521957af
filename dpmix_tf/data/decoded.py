"""Sources whose images are decoded and resized on demand, among them TFDS's."""

import abc
import io
from collections.abc import Sequence
from concurrent import futures
from typing import Any

import numpy as np
import tensorflow as tf
from PIL import Image

from dpmix_tf.data.sources import (
    DECODERS,
    Examined,
    ExampleSource,
    check_class_names,
    digest,
    label_spec,
    progress,
)
from dpmix_tf.images import fit_image


class DecodedSource(ExampleSource):
    """Examples that are decoded and resized on demand, several at a time."""

    def __init__(self, image_shape, class_names, count):
        self.image_shape = tuple(image_shape)
        self.class_names = check_class_names(class_names)
        self._count = count

    def __len__(self) -> int:
        return self._count

    @abc.abstractmethod
    def _decode(self, index: int) -> tuple[np.ndarray, Any]:
        """Returns one image, uint8 of image_shape, and its label or labels."""

    def read(self, indices):
        """Decodes images in parallel."""
        images = np.empty((len(indices), *self.image_shape), np.uint8)
        spec = label_spec(self, [len(indices)])
        labels = np.empty(spec.shape, spec.dtype.as_numpy_dtype)

        def place(position: int) -> None:
            images[position], labels[position] = self._decode(int(indices[position]))

        with futures.ThreadPoolExecutor(DECODERS) as pool:
            list(pool.map(place, range(len(indices))))
        return images, labels


class TfdsSource(DecodedSource):
    """A prepared TFDS split in ArrayRecord format, decoded on demand.

    TFDS decodes the images itself, without applying their EXIF orientation.

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

    def examine(self, indices=None):
        """Examines the records as stored in the files, without decoding images."""
        records = getattr(self._data_source, "data_source", None)
        if not (records and isinstance(records[0], bytes)):  # another kind of source
            return super().examine(indices)
        indices = np.arange(len(self)) if indices is None else indices

        def look(index):
            record = records[int(index)]
            features = tf.train.Example.FromString(record).features.feature
            label = features["label"].int64_list.value[0]
            encoded = io.BytesIO(features["image"].bytes_list.value[0])
            with Image.open(encoded) as image:
                return digest(record, label), label, image.size

        return Examined.of(map(look, progress(indices, "Reading the data")))
