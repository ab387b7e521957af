"""SyntheticPool: labelled public images in an ordinary folder, with a manifest.

  <pool>/manifest.json
  <pool>/<class name>/<seed>.png

Each PNG records in a text chunk what it was made from (prompt, seed, ...), so a single
rename puts image and record in place together; the manifest collects the records and
the files' digests. A pool is public: it must never depend on the private data, and it
costs no privacy budget.
"""

import dataclasses
import functools
import hashlib
import io
import json
import tempfile
import urllib.parse
from collections.abc import Mapping, Sequence
from concurrent import futures
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import tensorflow as tf
from PIL import Image, PngImagePlugin

from dpmix_tf.errors import DPMixError
from dpmix_tf.files import local_path, write_atomic, write_text_atomic
from dpmix_tf.images import to_png

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"

_RECORD = "dpmix_tf"  # the PNG text chunk's name
_READERS = 2

# Above this many bytes, images are mapped from a file instead of held in memory.
_IN_MEMORY = 2 * 2**30


class PoolWriter:
    """Fills a pool one image at a time; if interrupted, another writer can continue.

    Several processes may fill one pool: images never clash, and `finish` collects the
    manifest.

    Args:
      folder: the pool; created if missing.
      class_names: all classes, in the data set's order.
      image_shape: (H, W, C) of every image.
      generator: describes what makes the images (name, settings, digests of weights),
        as JSON-able values.

    Raises:
      DPMixError: the folder holds a pool with other classes, size or generator.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        class_names: Sequence[str],
        image_shape: Sequence[int],
        generator: Mapping[str, Any],
    ):
        self.folder = local_path(folder, "pool.path")
        self.class_names = tuple(class_names)
        self.image_shape = tuple(image_shape)
        self._header = {
            "schema_version": SCHEMA_VERSION,
            "class_names": list(class_names),
            "image_shape": list(image_shape),
            "generator": dict(generator),
        }
        try:
            for name in class_names:
                class_folder(self.folder, name).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DPMixError(
                f"Cannot create the pool {self.folder}: {error.strerror}. Choose "
                "another folder."
            ) from error
        if not (self.folder / MANIFEST).exists():
            self._write_manifest([])
            return
        there = read_manifest(self.folder)
        differing = [key for key in self._header if there[key] != self._header[key]]
        if differing:
            raise DPMixError(
                f"{self.folder} holds a pool made with other settings: "
                + "; ".join(
                    f"{key}: {there[key]} there, {self._header[key]} here"
                    for key in differing
                )
                + ". Use another folder, or continue with the same settings."
            )

    def path(self, class_name: str, seed: int) -> Path:
        """Returns the path of the image with a class and seed."""
        return class_folder(self.folder, class_name) / f"{seed}.png"

    def add(
        self, class_name: str, seed: int, image: np.ndarray, record: Mapping[str, Any]
    ) -> None:
        """Writes one image atomically under its final name.

        Args:
          class_name: one of the pool's classes.
          seed: the image's seed, which names the file.
          image: uint8 [H,W,C] of the pool's shape.
          record: what it was made from (prompt, steps, ...), as JSON-able values.

        Raises:
          DPMixError: the image has another shape, or the disk is full.
        """
        if image.shape != self.image_shape or image.dtype != np.uint8:
            raise DPMixError(
                f"The pool holds uint8 images of shape {self.image_shape}; received: "
                f"{image.dtype}, {image.shape}."
            )
        text = PngImagePlugin.PngInfo()
        text.add_itxt(_RECORD, json.dumps({"seed": seed, **record}))
        data = to_png(image, pnginfo=text)
        write_atomic(self.path(class_name, seed), lambda file: file.write(data))

    def finish(self) -> int:
        """Writes the manifest of all images in the pool.

        Returns:
          The number of images.

        Raises:
          DPMixError: an image is broken, has another size or was not written by us.
        """
        images = []
        for name in self.class_names:
            folder = class_folder(self.folder, name)
            for path in sorted(folder.glob("*.png"), key=_seed_of):
                data = path.read_bytes()
                decode(data, path, self.image_shape)
                with Image.open(io.BytesIO(data)) as image:
                    record = getattr(image, "text", {}).get(_RECORD)
                if record is None:
                    raise DPMixError(
                        f"{path} does not record where it came from. Add images of "
                        "your own with bin/generate_pool.py --import_from=FOLDER."
                    )
                images.append(
                    {
                        "file": f"{folder.name}/{path.name}",
                        "class_name": name,
                        "sha256": hashlib.sha256(data).hexdigest(),
                        **json.loads(record),
                    }
                )
        self._write_manifest(images)
        return len(images)

    def _write_manifest(self, images: list[dict[str, Any]]) -> None:
        text = json.dumps({**self._header, "images": images}, indent=1)
        write_text_atomic(self.folder / MANIFEST, text + "\n")


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class SyntheticPool:
    """A pool in memory (or mapped, when large), ordered by class.

    Attributes:
      images: uint8 [P,H,W,C].
      labels: int32 [P], non-decreasing; indices into class_names.
      class_names: the data set's class names, in its order.
      digest: SHA-256 of the manifest's list of files and their digests.
      folder: the folder it was loaded from; None if it was made in memory.
    """

    images: np.ndarray
    labels: np.ndarray
    class_names: tuple[str, ...]
    digest: str
    folder: str | None = None

    @classmethod
    def load(
        cls,
        folder: str | Path,
        *,
        class_names: Sequence[str] | None = None,
        image_shape: Sequence[int] | None = None,
    ) -> "SyntheticPool":
        """Loads a pool and checks every image against the manifest.

        Args:
          folder: the pool.
          class_names: the data set's class names; classes are matched by name and put
            in this order. By default, the pool's own.
          image_shape: the data set's (H, W, C). By default, the pool's own.

        Raises:
          DPMixError: there is no pool, its classes or image size are not those of the
            data set, or an image is missing, broken, changed or not in the manifest.
        """
        folder = local_path(folder, "pool.path")
        manifest = read_manifest(folder)
        shape = tuple(manifest["image_shape"])
        if image_shape is not None and shape != tuple(image_shape):
            colour = {1: "grey", 3: "RGB"}
            raise DPMixError(
                f"The pool {folder} holds {shape[0]}x{shape[1]} "
                f"{colour.get(shape[2], shape[2])} images, the data set "
                f"{image_shape[0]}x{image_shape[1]} "
                f"{colour.get(image_shape[2], image_shape[2])}. Generate or import a "
                f"pool with image_shape={tuple(image_shape)}."
            )
        names = tuple(manifest["class_names"] if class_names is None else class_names)
        missing = sorted(set(names) - set(manifest["class_names"]))
        extra = sorted(set(manifest["class_names"]) - set(names))
        if missing or extra:
            raise DPMixError(
                f"The pool {folder} has other classes than the data set: missing "
                f"{missing}, unexpected {extra}. Classes are matched by name; rename, "
                "add or remove them."
            )
        label_of = {name: label for label, name in enumerate(names)}
        entries = sorted(
            manifest["images"], key=lambda e: (label_of[e["class_name"]], e["seed"])
        )
        _check_files(folder, names, {entry["file"] for entry in entries})
        images = _empty((len(entries), *shape))

        def read(part: int) -> None:
            for index in range(part, len(entries), _READERS):
                path = f"{folder}/{entries[index]['file']}"
                with open(path, "rb") as file:
                    data = file.read()
                pixels = decode(data, path, shape)
                if hashlib.sha256(data).hexdigest() != entries[index]["sha256"]:
                    raise DPMixError(
                        f"{path} is not the file the manifest describes. {_FIX}"
                    )
                images[index] = pixels

        # Decoding releases the interpreter's lock only briefly: two readers are faster
        # than four.
        with futures.ThreadPoolExecutor(_READERS) as readers:
            list(readers.map(read, range(_READERS)))
        listing = "".join(f"{entry['file']} {entry['sha256']}\n" for entry in entries)
        return cls(
            images=images,
            labels=np.array([label_of[e["class_name"]] for e in entries], np.int32),
            class_names=names,
            digest=hashlib.sha256(listing.encode()).hexdigest(),
            folder=str(folder.absolute()),
        )

    def __len__(self) -> int:
        """Number of images."""
        return len(self.labels)

    @functools.cached_property
    def _tensor(self) -> tf.Tensor:
        with tf.init_scope(), tf.device("CPU"):
            return tf.constant(self.images)

    def gather(self, indices: tf.Tensor) -> tf.Tensor:
        """Looks up images inside a graph.

        Args:
          indices: integers [...] in [0, len(self)).

        Returns:
          uint8 [...,H,W,C].
        """
        if not isinstance(self.images, np.memmap):
            return tf.gather(self._tensor, indices)
        rows = tf.numpy_function(lambda i: self.images[i], [indices], tf.uint8)
        return tf.ensure_shape(rows, [*indices.shape, *self.images.shape[1:]])


_FIX = "Repair the pool with bin/generate_pool.py --repair, which removes bad files."


def read_manifest(folder: Path) -> dict[str, Any]:
    """Reads manifest.json.

    Raises:
      DPMixError: there is none, or it is not a pool's manifest.
    """
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text())
        if manifest["schema_version"] != SCHEMA_VERSION:
            raise DPMixError(
                f"{path} has schema version {manifest['schema_version']}; this version "
                f"of dpmix_tf reads {SCHEMA_VERSION}."
            )
        shape = manifest["image_shape"]
        entries = [(e["file"], e["class_name"], e["seed"]) for e in manifest["images"]]
        whole = [*shape, *(seed for _, _, seed in entries)]
        words = [*manifest["class_names"], *(e["sha256"] for e in manifest["images"])]
        words += [name for _, name, _ in entries]
        if (
            len(shape) != 3
            or any(type(number) is not int for number in whole)
            or any(not isinstance(word, str) for word in words)
            or any(PurePath(f).is_absolute() or ".." in f for f, _, _ in entries)
            or not {name for _, name, _ in entries} <= set(manifest["class_names"])
        ):
            raise KeyError("image_shape, class_names or images")
        return manifest
    except FileNotFoundError as error:
        raise DPMixError(
            f"{folder} is not a pool: it has no {MANIFEST}. Make one with "
            "bin/generate_pool.py."
        ) from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DPMixError(
            f"{path} is not a pool's manifest ({error!r}). Remove it and generate "
            "again: existing images are kept."
        ) from error


def decode(data: bytes, path: Path | str, shape: Sequence[int]) -> np.ndarray:
    """Decodes one PNG: uint8 [H,W,C].

    Raises:
      DPMixError: the file is broken or has another size; the message names it.
    """
    try:
        with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
            if image.size != (shape[1], shape[0]):
                raise ValueError(f"{image.width}x{image.height} pixels")
            pixels = np.asarray(image)
    except Exception as error:  # Pillow may raise anything on a broken file
        raise DPMixError(f"Unreadable image: {path} ({error}). {_FIX}") from error
    pixels = pixels[..., np.newaxis] if pixels.ndim == 2 else pixels
    if pixels.shape != tuple(shape) or pixels.dtype != np.uint8:
        raise DPMixError(
            f"{path} is {pixels.dtype} of shape {pixels.shape}; the pool's images are "
            f"uint8 of shape {tuple(shape)}. {_FIX}"
        )
    return pixels


def class_folder(folder: Path, class_name: str) -> Path:
    """Returns a class's folder; characters unsuitable for file names are %-quoted."""
    return folder / urllib.parse.quote(class_name, safe=" ,'()&").lstrip(".")


def _seed_of(path: Path) -> tuple[int, str]:
    return (int(path.stem) if path.stem.isdigit() else -1, path.stem)


def _check_files(folder: Path, names: Sequence[str], listed: set[str]) -> None:
    folders = {name: class_folder(folder, name) for name in names}
    there = {
        f"{own.name}/{path.name}"
        for own in folders.values()
        for path in own.glob("*")
        if not path.name.startswith(".")
    }
    lost, unknown = sorted(listed - there), sorted(there - listed)
    if lost or unknown:
        raise DPMixError(
            f"The manifest of {folder} is out of step with its files: missing "
            f"{lost[:5]}{' ...' if len(lost) > 5 else ''}, not listed {unknown[:5]}"
            f"{' ...' if len(unknown) > 5 else ''}. {_FIX}"
        )
    filled = {file.split("/")[0] for file in listed}
    for name, own in folders.items():
        if own.name not in filled:
            raise DPMixError(
                f"The class {name!r} of {folder} has no images. Generate or "
                "import some."
            )


def _empty(shape: tuple[int, ...]) -> np.ndarray:
    """Returns an array to fill, in memory or in an unnamed temporary file."""
    if np.prod(shape, dtype=np.int64) <= _IN_MEMORY:
        return np.empty(shape, np.uint8)
    with tempfile.TemporaryFile() as file:  # the mapping keeps it open
        return np.memmap(file, np.uint8, "w+", shape=shape)
