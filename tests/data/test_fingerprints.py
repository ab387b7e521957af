"""Data that differs in one example, in its place or its label is other data."""

import shutil

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from PIL import Image

from dpmix_tf.data import ArraySource, ExampleSource, ImageFolderSource
from dpmix_tf.data.decoded import TfdsSource


def pixels(count=250):
    random = np.random.default_rng(0)
    return random.integers(0, 256, (count, 6, 6, 3), dtype=np.uint8)


LABELS = np.arange(250) % 5


class OwnSource(ExampleSource):
    """A user's own, which knows nothing of fingerprints."""

    def __init__(self, images, labels):
        self.class_names = tuple("abcde")
        self.image_shape = images.shape[1:]
        self._images, self._labels = images, labels

    def __len__(self):
        return len(self._labels)

    def read(self, indices):
        return self._images[indices], self._labels[indices].astype(np.int32)


@pytest.mark.parametrize("kind", [OwnSource, ArraySource])
def test_a_change_anywhere_changes_the_fingerprint(kind):
    one = kind(pixels(), LABELS).fingerprint()
    assert kind(pixels(), LABELS).fingerprint() == one
    assert kind(255 - pixels(), LABELS).fingerprint() != one
    for index in (0, 1, 124, 249):
        images, labels = pixels(), LABELS.copy()
        images[index, 3, 3, 1] ^= 1
        assert kind(images, LABELS).fingerprint() != one
        labels[index] = (labels[index] + 1) % 5
        assert kind(pixels(), labels).fingerprint() != one
    swapped = np.r_[1, 0, 2:250]
    assert kind(pixels()[swapped], LABELS[swapped]).fingerprint() != one


@pytest.mark.parametrize("kind", [OwnSource, ArraySource])
def test_a_part_has_the_fingerprint_of_what_it_holds(kind):
    whole = kind(pixels(), LABELS)
    part = whole.subset([7, 3, 200])
    assert (
        part.fingerprint()
        == whole.subset([9, 200, 3, 7]).subset([3, 2, 1]).fingerprint()
    )
    assert part.fingerprint() != whole.subset([3, 7, 200]).fingerprint()
    images = pixels()
    images[8] = 0  # an example of no concern to it
    assert kind(images, LABELS).subset([7, 3, 200]).fingerprint() == part.fingerprint()
    images[3] = 0
    assert kind(images, LABELS).subset([7, 3, 200]).fingerprint() != part.fingerprint()


def folder(path, invert=False):
    for index, image in enumerate(pixels(6)):
        file = path / "ab"[index % 2] / f"{index}.bmp"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(255 - image if invert else image).save(file)
    return path


def test_image_files_replaced_by_others_of_the_same_size_are_noticed(tmp_path):
    def fingerprint(path):
        return ImageFolderSource(path, (6, 6, 3)).fingerprint()

    one = fingerprint(folder(tmp_path / "one"))
    assert fingerprint(folder(tmp_path / "other", invert=True)) != one
    # Where the folder lies does not matter, nor what lies beside the images.
    shutil.copytree(tmp_path / "one", tmp_path / "moved")
    (tmp_path / "moved" / "notes.txt").write_text("moved")
    assert fingerprint(tmp_path / "moved") == one
    (tmp_path / "moved" / "a" / "0.bmp").rename(tmp_path / "moved" / "b" / "0.bmp")
    assert fingerprint(tmp_path / "moved") != one


def test_records_of_the_same_count_are_told_apart(tmp_path):
    def fingerprint(images, labels):
        tfds.dataset_builders.store_as_tfds_dataset(
            name="tiny",
            version="1.0.0",
            data_dir=tmp_path,
            split_datasets={
                "train": tf.data.Dataset.from_tensor_slices(
                    {"image": images, "label": labels}
                )
            },
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(
                        shape=(6, 6, 3), encoding_format="png"
                    ),
                    "label": tfds.features.ClassLabel(names=list("abcde")),
                }
            ),
            file_format="array_record",
            disable_shuffling=True,
        )
        builder = tfds.builder("tiny", data_dir=tmp_path)
        source = TfdsSource(builder.as_data_source("train"), (6, 6, 3), "abcde")
        examined = source.examine(np.array([4, 1]))
        np.testing.assert_array_equal(examined.labels, labels[[4, 1]])
        np.testing.assert_array_equal(examined.sizes, [[6, 6], [6, 6]])
        shutil.rmtree(tmp_path / "tiny")
        return source.fingerprint()

    images, labels = pixels(10), LABELS[:10]
    one = fingerprint(images, labels)
    assert fingerprint(images, labels) == one
    assert fingerprint(255 - images, labels) != one
    assert fingerprint(images, labels[::-1].copy()) != one


def test_a_source_of_tfds_made_records_without_files_is_read(tmp_path):
    records = [{"image": image, "label": 2} for image in pixels(3)]
    source = TfdsSource(records, (6, 6, 3), "abcde")
    inverted = [{"image": 255 - image, "label": 2} for image in pixels(3)]
    other = TfdsSource(inverted, (6, 6, 3), "abcde")
    assert source.fingerprint() != other.fingerprint()
    np.testing.assert_array_equal(source.examine().labels, [2, 2, 2])
