"""ImageFolderSource: a folder of class folders, and checks of a folder's layout."""

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dpmix_tf.data.decoded import DecodedSource
from dpmix_tf.data.file_index import FileIndex
from dpmix_tf.data.sources import Examined, digest, some_of
from dpmix_tf.errors import DPMixError
from dpmix_tf.files import local_path
from dpmix_tf.images import (
    IMAGE_SUFFIXES,
    INDEX,
    Found,
    class_folders,
    find_images,
    read_image,
)

# Names of a data set's parts, of folders or in a table; case does not matter.
PARTS = {
    "train": "train",
    "training": "train",
    "test": "test",
    "testing": "test",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
}


def find_parts(folder: Path) -> dict[str, Path]:
    """Finds the folders of a data set's parts: train/, test/ and perhaps val/.

    Args:
      folder: the data set's folder.

    Returns:
      "train", "test" and perhaps "validation" -> the part's folder, found regardless of
      case; {} for a folder whose subfolders are the classes.

    Raises:
      DPMixError: the folder does not exist, or its layout is ambiguous.
    """
    _refuse_missing(folder)
    parts: dict[str, Path] = {}
    others = []
    for name in class_folders(folder):
        part = PARTS.get(name.lower())
        if part is None:
            others.append(name)
        elif part in parts:
            raise DPMixError(
                f"{folder} holds {parts[part].name}/ and {name}/, which both name its "
                f"{part} part. Merge them, or move one elsewhere."
            )
        else:
            parts[part] = folder / name
    if not parts:
        return {}
    if not {"train", "test"} <= parts.keys():
        names = " and ".join(f"{path.name}/" for path in parts.values())
        missing = " and ".join(f"{p}/" for p in ("train", "test") if p not in parts)
        raise DPMixError(
            f"{folder} holds {names} and no {missing}. Name the parts train/, test/ "
            "and, if you have one, val/, each with one subfolder of images per class; "
            "or give the folder whose subfolders are the classes. If a class has one "
            "of these names, rename it."
        )
    classes = [name for name in others if find_images(folder / name).files]
    if classes:
        raise DPMixError(
            f"{folder} holds train/ and test/, and images in {some_of(classes)} beside "
            "them: are these classes or parts? Move them elsewhere."
        )
    return parts


class ImageFolderSource(DecodedSource):
    """A folder with one subfolder of images per class.

    Classes are the subfolders in alphabetical order; `images.find_images` says which
    files in them are read and which are skipped. Images may have any size: when read,
    they are turned upright and resized to one size, with antialiasing.

    Attributes:
      skipped: reason that files or folders were skipped -> how many.

    Args:
      folder: the folder of class folders.
      image_shape: (H, W, C) to convert to; C = 1 is grey, 3 is RGB.
      class_names: expected class names, some of which may be missing here; by default
        the subfolders found, each of which must hold images.

    Raises:
      DPMixError: the folder does not exist, there are no images, a class is not among
        the expected ones, or the subfolders do not look like classes.
    """

    def __init__(
        self,
        folder: str | Path,
        image_shape: tuple[int, int, int],
        class_names: Sequence[str] | None = None,
    ):
        folder = local_path(folder, "The image folder")
        _refuse_missing(folder)
        subfolders = class_folders(folder)
        found = {name: find_images(folder / name) for name in subfolders}
        beside = find_images(folder, deep=False)
        self.skipped = sum((each.skipped for each in found.values()), beside.skipped)
        if beside.files:
            self.skipped["images beside the class folders"] = len(beside.files)
        if not any(images.files for images in found.values()):
            raise DPMixError(_no_images(folder, self.skipped))
        if class_names is None:
            class_names = subfolders
            _refuse_one_level_too_high(folder, found)
            _refuse_empty(folder, found)
        elif set(subfolders) - set(class_names):
            missing = sorted(set(class_names) - set(subfolders))
            extra = sorted(set(subfolders) - set(class_names))
            raise DPMixError(
                f"The classes of {folder} differ from the expected ones: missing "
                f"{missing}, unexpected {extra}."
            )
        self._files = [
            (path, label)
            for label, name in enumerate(class_names)
            if name in found
            for path in found[name].files
        ]
        self._names = [
            f"{name}/{below}"
            for name in class_names
            if name in found
            for below in _below(folder / name, found[name].files)
        ]
        paths = [str(path) for path, _ in self._files]
        self._index = FileIndex(
            folder / INDEX, dict(zip(self._names, paths, strict=True))
        )
        super().__init__(image_shape, class_names, len(self._files))

    def _decode(self, index):
        path, label = self._files[index]
        return read_image(path, self.image_shape), label

    def examine(self, indices=None):
        """Examines the files' bytes, names and labels; caches what it has read."""
        indices = np.arange(len(self)) if indices is None else indices
        contents = self._index.contents([self._names[index] for index in indices])

        def look(index, content):
            label = self._files[index][1]
            known = digest(
                bytes.fromhex(content.sha256), os.fsencode(self._names[index]), label
            )
            return known, label, (content.width, content.height)

        return Examined.of(map(look, indices, contents))

    def names(self):
        """Returns each file's path relative to the folder."""
        return self._names

    def check(self) -> None:
        """Decodes every image once, so that broken ones are reported before training.

        Raises:
          DPMixError: names the first images that cannot be read.
        """
        self.examine()


def _below(folder: Path, files: Sequence[Path]) -> list[str]:
    """Returns the paths of files, relative to a folder."""
    return [str(path)[len(str(folder)) + 1 :] for path in files]


def _refuse_missing(folder: Path) -> None:
    if not folder.is_dir():
        raise DPMixError(
            f"Image folder not found: {folder}. Expected one subfolder of images per "
            "class, such as <folder>/cat/1.jpg."
        )


def _no_images(folder: Path, skipped: Counter[str]) -> str:
    own = len(find_images(folder, deep=False).files)
    if own:
        return (
            f"{folder} holds {own} images itself and none in subfolders. Expected one "
            "subfolder of images per class: if this folder is itself a class, give the "
            "folder above."
        )
    passed = ", ".join(f"{count} {what}" for what, count in skipped.items())
    return (
        f"No images in {folder}. Expected one subfolder of {', '.join(IMAGE_SUFFIXES)} "
        f"files per class; skipped: {passed or 'nothing'}."
    )


def _refuse_one_level_too_high(folder: Path, found: dict[str, Found]) -> None:
    """Refuses classes that seem to hold classes, judging by the folder names.

    A class may sort its images into subfolders, by patient or by day; but then there
    are several classes, and their subfolders seldom have the same names.
    """
    inside = {
        name: {below.rpartition("/")[0].partition("/")[0] for below in paths}
        for name, images in found.items()
        if (paths := _below(folder / name, images.files))
    }
    subfolders = set.union(*inside.values())
    if "" in subfolders:  # some images lie directly in a class folder
        return
    names = some_of(sorted(subfolders))
    if len(inside) == 1:
        (only,) = inside
        raise DPMixError(
            f"{folder} holds all images in subfolders of {only}/: {names}. If these "
            f"are the classes or parts, give {folder / only}."
        )
    if len(subfolders) > 1 and all(each == subfolders for each in inside.values()):
        raise DPMixError(
            f"{some_of(inside)} of {folder} hold no images themselves, but all "
            f"hold the same subfolders, {names}. Which of them are the classes? Give "
            "the folder whose subfolders are the classes, with the images directly in "
            "them."
        )


def _refuse_empty(folder: Path, found: dict[str, Found]) -> None:
    empty = [name for name, images in found.items() if not images.files]
    if empty:
        raise DPMixError(
            f"{folder} has classes without images: {some_of(empty)}. Remove these "
            "folders, or begin their names with a dot so that they are skipped."
        )
