"""Data set name -> train, validation and test sources."""

import dataclasses
import shlex
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image

from dpmix_tf.data.decoded import TfdsSource
from dpmix_tf.data.image_folder import ImageFolderSource, find_parts
from dpmix_tf.data.parts import cut, keep
from dpmix_tf.data.people import PeopleSource
from dpmix_tf.data.sources import ArraySource, ExampleSource
from dpmix_tf.data.tables import TableSettings, open_table, table_class_names
from dpmix_tf.errors import DPMixError
from dpmix_tf.files import is_remote, local_path
from dpmix_tf.images import class_folders, fit_image


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dataset:
    """A data set's three parts. Validation is never cut from test.

    Attributes:
      train: private examples to learn from, or people.
      validation: private examples for choosing hyperparameters; None if there are none.
      test: examples for the final evaluation.
      skipped: reason that files of an image folder were skipped -> how many.
    """

    train: ExampleSource
    validation: ExampleSource | None
    test: ExampleSource
    skipped: Mapping[str, int] = dataclasses.field(default_factory=dict)

    @property
    def class_names(self) -> tuple[str, ...]:
        """One name per class, indexed by label."""
        return self.train.class_names

    @property
    def task(self) -> str:
        """SINGLE_LABEL or MULTI_LABEL, see ExampleSource."""
        return self.train.task

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(H, W, C)."""
        return self.train.image_shape


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Tfds:
    """How TFDS names a data set and its splits, and whether we must cut a test set.

    `test=None`: the data set has no test split; a fixed fifth of `train` is used.
    """

    name: str
    image_shape: tuple[int, int, int]
    train: str = "train"
    test: str | None = "test"


# Sizes are the data's own where it has one, 224 where they vary. TFDS has Caltech-101
# but not Caltech-256, which is read from its published folder instead.
_TFDS = {
    "cifar10": _Tfds(name="cifar10", image_shape=(32, 32, 3)),
    "cifar100": _Tfds(name="cifar100", image_shape=(32, 32, 3)),
    "mnist": _Tfds(name="mnist", image_shape=(28, 28, 1)),
    "fashion_mnist": _Tfds(name="fashion_mnist", image_shape=(28, 28, 1)),
    "svhn_cropped": _Tfds(name="svhn_cropped", image_shape=(32, 32, 3)),
    "eurosat": _Tfds(name="eurosat/rgb", image_shape=(64, 64, 3), test=None),
    "sun397": _Tfds(
        name="sun397/tfds", image_shape=(224, 224, 3), train="train+validation"
    ),
    "oxford_iiit_pet": _Tfds(name="oxford_iiit_pet", image_shape=(224, 224, 3)),
}

DATASETS = ("digits", *_TFDS, "caltech256", "image_folder", "table")


def load_dataset(
    name: str,
    *,
    data_dir: str | None = None,
    image_size: int | None = None,
    channels: int | None = None,
    train_examples: int | None = None,
    validation_fraction: float = 0.1,
    download: bool = True,
    **table: Any,
) -> Dataset:
    """Loads a data set by name.

    Args:
      name: one of DATASETS. "digits" comes with scikit-learn and needs nothing else.
      data_dir: TFDS's data directory; for "caltech256" and "image_folder", the folder
        with one subfolder per class, or with `train/`, `test/` and perhaps `val/` that
        each hold such subfolders; for "table", the folder that paths are relative to,
        by default the table's own.
      image_size: resize images to image_size x image_size; by default the data's own
        size, or 224 where it varies. "digits" is always 8x8.
      channels: 1 or 3, for image folders and tables; by default 3.
      train_examples: keep this many, the same ones in every run; by default all. Where
        the examples are of people, this many people.
      validation_fraction: fraction of train that becomes validation, in [0, 1). If
        there is a `val/`, it is the validation set, unless the fraction is 0.
      download: let TFDS download and prepare what is missing.
      **table: for "table" only: the fields of tables.TableSettings.

    Returns:
      Dataset. The split never depends on a seed: in image folders and tables it depends
      on each file's own path, so adding files moves no others to another part; in a
      table with people, on each person's name, so that nobody is in two parts;
      elsewhere it depends on the number of examples.

    Raises:
      DPMixError: the name is unknown, files are missing, TFDS has not prepared the
        data, the table is invalid, or a part would be empty.
    """
    if not 0 <= validation_fraction < 1:
        raise DPMixError(
            "validation_fraction must be at least 0 and below 1, received: "
            f"{validation_fraction}."
        )
    settings = TableSettings(**table)
    whole = _open(name, data_dir, image_size, channels, download, settings)
    train, validation = whole.train, whole.validation
    if train_examples is not None:
        train, _ = keep(train, train_examples)
    if validation_fraction == 0:
        validation = None
    elif validation is None:
        train, validation = cut(train, validation_fraction, "validation")
    if train.people is not None:
        most = settings.max_images_per_person
        train = PeopleSource(train, train.people, max_images=most)
    return dataclasses.replace(whole, train=train, validation=validation)


def load_left_out(
    name: str,
    *,
    data_dir: str | None = None,
    image_size: int | None = None,
    channels: int | None = None,
    train_examples: int | None = None,
    download: bool = True,
    **table: Any,
) -> ExampleSource:
    """Loads the training examples that `load_dataset` leaves out for `train_examples`.

    For experiments that take part of a data set as public. The arguments are those of
    load_dataset.

    Raises:
      DPMixError: as load_dataset; or no example is left out.
    """
    settings = TableSettings(**table)
    whole = _open(name, data_dir, image_size, channels, download, settings)
    _, left_out = keep(whole.train, train_examples)
    if left_out is None:
        raise DPMixError(
            "All training examples are private: set data.train_examples to fewer than "
            f"{len(whole.train)}, and the rest is left out."
        )
    return left_out


def _open(
    name: str,
    data_dir: str | None,
    image_size: int | None,
    channels: int | None,
    download: bool,
    settings: TableSettings,
) -> Dataset:
    """All examples, with a validation part only where there is a folder of it."""
    if name not in DATASETS:
        raise DPMixError(
            f"data.name must be one of {', '.join(DATASETS)}; received: {name!r}."
        )
    if channels not in (None, 1, 3):
        raise DPMixError(f"channels must be 1 (grey) or 3 (RGB), received: {channels}.")
    shape = (image_size or 224, image_size or 224, channels or 3)
    if name == "table":
        return _table(settings, data_dir, shape)
    settings.refuse_for(name)
    if name == "digits":
        train, test = _digits()
        return Dataset(train=train, validation=None, test=test)
    if name in _TFDS:
        train, test = _tfds(_TFDS[name], data_dir, image_size, download)
        return Dataset(train=train, validation=None, test=test)
    return _folder(name, data_dir, shape)


def describe_dataset(
    name: str,
    *,
    data_dir: str | None = None,
    image_size: int | None = None,
    channels: int | None = None,
    **table: Any,
) -> tuple[tuple[str, ...], tuple[int, int, int]]:
    """Returns a data set's classes and image shape, without reading any example.

    This is all that is needed to make a pool of public images, possibly on a machine
    other than the one that holds the private data.

    Args:
      name: one of DATASETS.
      data_dir: as for load_dataset; the names of its folders are read.
      image_size: as for load_dataset.
      channels: as for load_dataset.
      **table: as for load_dataset; the table is read only if it names the classes.

    Returns:
      Class names; (H, W, C).

    Raises:
      DPMixError: the name is unknown, or the folder or table does not exist.
    """
    settings = TableSettings(**table)
    if name == "table":
        names = table_class_names(settings.table, settings.columns, settings.names)
        return names, (image_size or 224, image_size or 224, channels or 3)
    settings.refuse_for(name)
    if name == "digits":
        return tuple("0123456789"), (8, 8, 1)
    if name in _TFDS:
        import tensorflow_datasets as tfds  # takes seconds to import

        builder = tfds.builder(_TFDS[name].name, data_dir=_tfds_dir(data_dir))
        height, width, depth = _TFDS[name].image_shape
        shape = (image_size or height, image_size or width, depth)
        return tuple(builder.info.features["label"].names), shape
    folder = local_path(data_dir, "data.data_dir") if data_dir else None
    if name not in DATASETS or folder is None or not folder.is_dir():
        raise DPMixError(
            f"Cannot determine the classes of data.name={name!r} in data.data_dir="
            f"{folder}: expected one of {', '.join(DATASETS)}; caltech256 and "
            "image_folder need their folder."
        )
    folder = find_parts(folder).get("train", folder)
    side = image_size or 224
    return class_folders(folder), (side, side, channels or 3)


def describe_settings(
    data: Mapping[str, Any],
) -> tuple[tuple[str, ...], tuple[int, int, int]]:
    """Returns what `describe_dataset` says of the settings under `data` of a run."""
    named = {key: data[key] for key in ("name", "data_dir", "image_size", "channels")}
    return describe_dataset(**named, **dataclasses.asdict(TableSettings.of(data)))


def _digits() -> tuple[ExampleSource, ExampleSource]:
    """scikit-learn's 1,797 handwritten digits; a fixed fifth is the test set."""
    from sklearn import datasets  # takes a second to import, and only digits need it

    digits = datasets.load_digits()
    # Values are whole numbers from 0 to 16.
    images = np.round(digits.images * (255 / 16)).astype(np.uint8)[..., np.newaxis]
    train, test = cut(ArraySource(images, digits.target), 0.2, "test")
    assert test is not None
    return train, test


def _folder(name: str, data_dir: str | None, shape: tuple[int, int, int]) -> Dataset:
    """Returns the parts; validation only if it has a folder."""
    if not data_dir:
        raise DPMixError(
            f"data.name={name!r} needs data.data_dir: a folder with one subfolder of "
            "images per class, or with train/ and test/ that hold such subfolders."
        )
    folder = local_path(data_dir, "data.data_dir")
    parts = find_parts(folder)
    train = ImageFolderSource(parts.get("train", folder), shape)
    others = {
        part: ImageFolderSource(place, shape, train.class_names)
        for part, place in parts.items()
        if part != "train"
    }
    for source in (*others.values(), train):
        source.check()
    if not others:
        train_part, test_part = cut(train, 0.2, "test")
        assert test_part is not None
        return Dataset(
            train=train_part, validation=None, test=test_part, skipped=train.skipped
        )
    return Dataset(
        train=train,
        validation=others.get("validation"),
        test=others["test"],
        skipped=sum((source.skipped for source in others.values()), train.skipped),
    )


def _table(
    settings: TableSettings, data_dir: str | None, shape: tuple[int, int, int]
) -> Dataset:
    """Returns the parts; validation only if the table names it."""
    if not settings.table:
        raise DPMixError(
            "data.name='table' needs data.table: a CSV or Parquet file with one row "
            "per image, its path and its label."
        )
    parts = open_table(
        settings.table,
        folder=data_dir,
        columns=settings.columns,
        image_shape=shape,
        class_names=settings.names,
    )
    for source in parts.values():
        source.check()
    if "test" in parts:
        return Dataset(
            train=parts["train"],
            validation=parts.get("validation"),
            test=parts["test"],
        )
    train, test = cut(parts["train"], 0.2, "test")
    assert test is not None
    return Dataset(train=train, validation=None, test=test)


def _tfds(
    wanted: _Tfds, data_dir: str | None, image_size: int | None, download: bool
) -> tuple[ExampleSource, ExampleSource]:
    import tensorflow_datasets as tfds  # takes seconds to import

    builder = tfds.builder(wanted.name, data_dir=_tfds_dir(data_dir))
    if not builder.is_prepared():
        _prepare(builder, wanted.name, download)
    height, width, channels = wanted.image_shape
    shape = (image_size or height, image_size or width, channels)
    train = _split(builder, wanted.train, shape)
    if wanted.test is not None:
        return train, _split(builder, wanted.test, shape)
    train_part, test_part = cut(train, 0.2, "test")
    assert test_part is not None
    return train_part, test_part


def _tfds_dir(data_dir: str | None) -> str | None:
    """Returns the data directory; for TFDS alone, it may be a remote address."""
    if data_dir is None or is_remote(data_dir):
        return data_dir
    return str(local_path(data_dir, "data.data_dir"))


def _prepare(builder, name: str, download: bool) -> None:
    data_dir = f"--data_dir={builder.data_dir_root}"
    command = shlex.join(["tfds", "build", name, data_dir])
    reason = "data.download is off"
    if download:
        try:
            builder.download_and_prepare()
            return
        except Exception as error:  # TFDS passes on any network error
            reason = f"downloading failed: {type(error).__name__}: {error}"
    raise DPMixError(
        f"TFDS data set {name!r} is not prepared in {builder.data_dir_root} and "
        f"{reason[:300]}.\nPrepare it on a machine with network access with\n"
        f"  {command}\nand copy the folder, or set data.data_dir to where it is."
    )


def _split(builder, split: str, shape: tuple[int, int, int]) -> ExampleSource:
    """Opens ArrayRecord splits for random access; reads others into memory.

    TFDS decodes the images itself and does not apply their EXIF orientation.
    """
    from tensorflow_datasets.core import file_adapters

    names = builder.info.features["label"].names
    if builder.info.file_format == file_adapters.FileFormat.ARRAY_RECORD:
        return TfdsSource(builder.as_data_source(split=split), shape, names)
    examples = builder.as_dataset(split=split)
    if builder.info.features["image"].shape == shape:
        batches = list(examples.batch(512).prefetch(4).as_numpy_iterator())
        images = np.concatenate([batch["image"] for batch in batches])
        labels = np.concatenate([batch["label"] for batch in batches])
        return ArraySource(images, labels, names)
    count = builder.info.splits[split].num_examples
    images = np.empty((count, *shape), np.uint8)
    labels = np.empty(count, np.int32)
    for position, example in enumerate(examples.prefetch(16).as_numpy_iterator()):
        pixels = example["image"]
        pixels = pixels[..., 0] if pixels.shape[-1] == 1 else pixels
        images[position] = fit_image(Image.fromarray(pixels), shape)
        labels[position] = example["label"]
    return ArraySource(images, labels, names)
