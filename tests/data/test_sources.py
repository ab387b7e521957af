import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from PIL import Image

from dpmix_tf.data import (
    ArraySource,
    ImageFolderSource,
    describe_dataset,
    load_dataset,
    ordered_batches,
    registry,
)
from dpmix_tf.data.decoded import TfdsSource
from dpmix_tf.errors import DPMixError


def images(count=4, shape=(6, 6, 3)):
    return np.random.default_rng(0).integers(0, 256, (count, *shape), dtype=np.uint8)


@pytest.fixture
def folder(tmp_path):
    """cat/ and dog/, images of several sizes, modes and formats."""
    for name, size, mode, file in (
        ("cat", (20, 10), "RGB", "a.png"),
        ("cat", (7, 30), "L", "deep/b.jpg"),
        ("dog", (12, 12), "RGBA", "c.PNG"),
        ("dog", (40, 40), "CMYK", "d.jpeg"),
        ("dog", (12, 12), "RGB", "e.png"),
    ):
        path = tmp_path / name / file
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new(mode, size, color=200 if mode == "L" else None).save(path)
    (tmp_path / "notes.txt").write_text("not an image")
    return tmp_path


@pytest.mark.parametrize(
    ("pixels", "labels", "words"),
    [
        (np.zeros((4, 6, 6), np.uint8), np.zeros(4, int), r"\[n,H,W,C\]"),
        (np.zeros((4, 6, 6, 2), np.uint8), np.zeros(4, int), "1 or 3 channels"),
        (np.zeros((4, 6, 6, 1), np.int64), np.zeros(4, int), "uint8"),
        (np.zeros((4, 6, 6, 1), np.uint8), np.zeros(3, int), "labels must be"),
        (np.zeros((4, 6, 6, 1), np.uint8), np.zeros(4), "labels must be integers"),
        (np.zeros((4, 6, 6, 1), np.uint8), np.array([0, 1, 2, -1]), r"in \[0,"),
        (np.zeros((0, 6, 6, 1), np.uint8), np.zeros(0, int), "no examples"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(pixels, labels, words):
    with pytest.raises(DPMixError, match=words):
        ArraySource(pixels, labels)


def test_labels_beyond_the_class_names_are_refused():
    with pytest.raises(DPMixError, match="one of 2 classes"):
        ArraySource(images(), np.array([0, 1, 2, 1]), ["a", "b"])


def test_reading_is_by_index_in_the_order_asked_for():
    source = ArraySource(images(), np.array([3, 2, 1, 0]))
    read, labels = source.read(np.array([2, 0]))
    np.testing.assert_array_equal(read, images()[[2, 0]])
    np.testing.assert_array_equal(labels, [1, 3])
    assert source.read(np.array([], np.int64))[0].shape == (0, 6, 6, 3)
    part = source.subset([3, 1])
    assert len(part) == 2 and part.class_names == source.class_names
    np.testing.assert_array_equal(part.read(np.array([1]))[0], images()[[1]])


def test_real_fashion_mnist_loads(fashion_mnist_dir):
    loaded = load_dataset("fashion_mnist", data_dir=fashion_mnist_dir, download=False)
    sizes = [len(part) for part in (loaded.train, loaded.validation, loaded.test)]
    assert sizes == [54_000, 6_000, 10_000]
    assert loaded.class_names[9] == "Ankle boot"
    assert loaded.image_shape == (28, 28, 1)
    images, labels = loaded.test.read(np.arange(0, 10_000, 10))
    assert images.shape == (1000, 28, 28, 1) and images.dtype == np.uint8
    assert images.min() == 0 and images.max() == 255
    assert set(labels) == set(range(10))


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("mnist", (28, 28, 1)),
        ("fashion_mnist", (28, 28, 1)),
        ("svhn_cropped", (32, 32, 3)),
        ("cifar10", (32, 32, 3)),
    ],
)
def test_named_data_sets_are_tfdss_own(name, shape, tmp_path):
    """What the registry says of a data set is what TFDS says of it."""
    builder = tfds.builder(registry._TFDS[name].name, data_dir=str(tmp_path))
    classes, found = describe_dataset(name, data_dir=str(tmp_path))
    assert builder.info.features["image"].shape == found == shape
    assert list(classes) == builder.info.features["label"].names and len(classes) == 10


def test_a_memory_mapped_array_is_a_source(tmp_path):
    np.save(tmp_path / "x.npy", images())
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    read, _ = ArraySource(mapped, np.arange(4)).read(np.array([1, 3]))
    np.testing.assert_array_equal(read, images()[[1, 3]])


def test_ordered_batches_read_everything_once():
    source = ArraySource(images(7), np.arange(7))
    batches = list(ordered_batches(source, 3))
    assert [len(labels) for _, labels in batches] == [3, 3, 1]
    np.testing.assert_array_equal(np.concatenate([x for x, _ in batches]), images(7))


def test_image_folders_are_decoded_converted_and_resized(folder):
    source = ImageFolderSource(folder, (8, 8, 3))
    assert source.class_names == ("cat", "dog") and len(source) == 5
    source.check()
    read, labels = source.read(np.arange(5))
    assert read.shape == (5, 8, 8, 3) and read.dtype == np.uint8
    np.testing.assert_array_equal(labels, [0, 0, 1, 1, 1])
    assert np.all(np.abs(read[1].astype(int) - 200) < 3)
    assert ImageFolderSource(folder, (8, 8, 1)).read([0])[0].shape == (1, 8, 8, 1)


def test_broken_images_are_named_before_training(folder):
    (folder / "cat" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nhalf")
    whole = (folder / "dog" / "d.jpeg").read_bytes()
    (folder / "dog" / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DPMixError) as error:
        load_dataset("image_folder", data_dir=str(folder), image_size=8)
    assert "broken.png" in str(error.value) and "cut.jpg" in str(error.value)


def test_folders_without_images_or_classes_are_refused(tmp_path):
    with pytest.raises(DPMixError, match="not found"):
        ImageFolderSource(tmp_path / "nowhere", (8, 8, 3))
    with pytest.raises(DPMixError, match="No images"):
        ImageFolderSource(tmp_path, (8, 8, 3))
    with pytest.raises(DPMixError, match="needs data.data_dir"):
        load_dataset("image_folder")


def test_train_without_test_is_not_taken_for_a_class(folder, tmp_path_factory):
    root = tmp_path_factory.mktemp("split")
    (root / "val").mkdir()
    folder.rename(root / "train")
    with pytest.raises(DPMixError, match="train/ and val/ and no test/"):
        load_dataset("image_folder", data_dir=str(root))


def test_fingerprints_tell_data_apart(folder):
    one = ArraySource(images(), np.arange(4))
    others = [
        ArraySource(images()[::-1].copy(), np.arange(4)),
        ArraySource(images(), np.arange(4)[::-1]),
        one.subset([0, 1]),
        one.subset([1, 0]),
        ImageFolderSource(folder, (8, 8, 3)),
    ]
    prints = [one.fingerprint(), *(other.fingerprint() for other in others)]
    assert len(set(prints)) == len(prints)
    assert one.fingerprint() == ArraySource(images(), np.arange(4)).fingerprint()
    (folder / "cat" / "a.png").rename(folder / "cat" / "z.png")
    assert ImageFolderSource(folder, (8, 8, 3)).fingerprint() != prints[-1]


def test_a_test_folder_with_other_classes_is_refused(folder, tmp_path_factory):
    root = tmp_path_factory.mktemp("split")
    for part, names in (("train", ("cat", "dog")), ("test", ("cat", "cow"))):
        for name in names:
            path = root / part / name
            path.mkdir(parents=True)
            Image.new("RGB", (8, 8)).save(path / "1.png")
    with pytest.raises(DPMixError, match=r"missing \['dog'\], unexpected \['cow'\]"):
        load_dataset("image_folder", data_dir=str(root))


def test_digits_are_cut_by_a_fixed_rule(digits):
    assert (len(digits.train), len(digits.validation), len(digits.test)) == (
        1294,
        144,
        359,
    )
    again = load_dataset("digits")
    for part in ("train", "validation", "test"):
        one, other = getattr(digits, part), getattr(again, part)
        everything = np.arange(len(one))
        np.testing.assert_array_equal(
            one.read(everything)[0], other.read(everything)[0]
        )
    # The three parts are the 1,797 digits, each once.
    counts = sum(
        np.bincount(part.read(np.arange(len(part)))[1], minlength=10)
        for part in (digits.train, digits.validation, digits.test)
    )
    np.testing.assert_array_equal(
        counts, [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    )


def test_the_validation_split_does_not_touch_the_test_set(digits):
    whole = load_dataset("digits", validation_fraction=0.0)
    assert whole.validation is None and len(whole.train) == 1294 + 144
    everything = np.arange(len(digits.test))
    np.testing.assert_array_equal(
        whole.test.read(everything)[0], digits.test.read(everything)[0]
    )


def test_unknown_names_and_fractions_are_refused():
    with pytest.raises(DPMixError, match="digits, cifar10"):
        load_dataset("imagenet")
    with pytest.raises(DPMixError, match="validation_fraction"):
        load_dataset("digits", validation_fraction=1.0)


def test_data_that_tfds_has_not_prepared_names_the_command(tmp_path):
    with pytest.raises(DPMixError, match="tfds build cifar10 --data_dir"):
        load_dataset("cifar10", data_dir=str(tmp_path), download=False)


@pytest.mark.parametrize("file_format", ["tfrecord", "array_record"])
def test_tfds_splits_are_read_in_either_file_format(tmp_path, file_format, monkeypatch):
    pixels = images(10)

    def split(start, stop):
        return tf.data.Dataset.from_tensor_slices(
            {"image": pixels[start:stop], "label": np.arange(start, stop) % 2}
        )

    tfds.dataset_builders.store_as_tfds_dataset(
        name="tiny",
        version="1.0.0",
        data_dir=tmp_path,
        split_datasets={"train": split(0, 8), "test": split(8, 10)},
        features=tfds.features.FeaturesDict(
            {
                "image": tfds.features.Image(shape=(6, 6, 3), encoding_format="png"),
                "label": tfds.features.ClassLabel(names=["a", "b"]),
            }
        ),
        file_format=file_format,
        disable_shuffling=True,
    )
    entry = registry._Tfds(name="tiny", image_shape=(6, 6, 3))
    monkeypatch.setitem(registry._TFDS, "cifar10", entry)
    loaded = load_dataset(
        "cifar10", data_dir=str(tmp_path), validation_fraction=0.0, download=False
    )
    if file_format == "array_record":
        assert isinstance(loaded.train, TfdsSource)
    assert loaded.class_names == ("a", "b") and len(loaded.test) == 2
    read, labels = loaded.train.read(np.array([5, 0, 5]))
    np.testing.assert_array_equal(read, pixels[[5, 0, 5]])
    np.testing.assert_array_equal(labels, [1, 0, 1])
    smaller = load_dataset("cifar10", data_dir=str(tmp_path), image_size=3)
    assert smaller.train.read(np.arange(2))[0].shape == (2, 3, 3, 3)


@pytest.mark.slow
def test_real_cifar10_loads(cifar10_dir):
    loaded = load_dataset("cifar10", data_dir=cifar10_dir, download=False)
    sizes = [len(part) for part in (loaded.train, loaded.validation, loaded.test)]
    assert sizes == [45_000, 5_000, 10_000]
    assert loaded.class_names[3] == "cat" and loaded.image_shape == (32, 32, 3)


def test_a_memory_mapped_array_is_read_by_rows(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (50, 4, 4, 3), np.uint8)
    np.save(tmp_path / "images.npy", images)
    mapped = np.load(tmp_path / "images.npy", mmap_mode="r")
    source = ArraySource(mapped, np.arange(50) % 5)
    read, labels = source.read(np.array([7, 3, 7]))
    np.testing.assert_array_equal(read, images[[7, 3, 7]])
    np.testing.assert_array_equal(labels, [2, 3, 2])
    assert not isinstance(read, np.memmap)
