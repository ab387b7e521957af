"""Finding, reading, turning upright, converting and resizing image files."""

import contextlib
import io
import os
import re
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from dpmix_tf.errors import DPMixError

# A small file can claim any size; decoding this many takes a quarter of a gigabyte.
MOST_PIXELS = 80_000_000

# If only twelve of sixteen bits are used, the higher eight are nearly black.
TWELVE_BITS = 4095

IMAGE_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")
_EXPECTED = "a JPEG, PNG, WebP, BMP, GIF or TIFF file"

# Name of the index of a folder's files: see data.file_index.
INDEX = ".dpmix-tf-files.json"

# What operating systems leave in folders, besides names that begin with a dot.
_LITTER = ("__macosx", "desktop.ini", "thumbs.db")

_EXIF = b"Exif\0\0"
ORIENTATION_TAG = 0x0112
_TURNS = {  # by EXIF orientation: what makes the image upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class _UnsuitableError(ValueError):
    """An intact image that we do not read; the message says what to do."""


class Found(NamedTuple):
    """What a folder holds.

    Attributes:
      files: the image files at any depth, in order.
      skipped: reason that other files and folders were skipped -> how many.
    """

    files: list[Path]
    skipped: Counter[str]


def class_folders(folder: Path) -> tuple[str, ...]:
    """Returns the sorted names of a folder's subfolders, which are its classes."""
    return tuple(
        sorted(
            entry.name
            for entry in folder.iterdir()
            if entry.is_dir() and not _is_litter(entry.name)
        )
    )


def find_images(folder: Path, *, deep: bool = True) -> Found:
    """Finds the image files in a folder, at any depth or only directly in it.

    Hidden files and folders (such as `.ipynb_checkpoints` and `._photo.jpg`) and those
    that operating systems leave behind (`__MACOSX`, `Thumbs.db`) are skipped, as are
    files with suffixes other than IMAGE_SUFFIXES and links to folders.

    Raises:
      DPMixError: a folder cannot be read.
    """

    def refuse(error: OSError) -> None:
        raise DPMixError(
            f"Cannot read {error.filename}: {error.strerror}. Make it readable, or "
            "move it elsewhere."
        ) from error

    files, skipped = [], Counter[str]()
    for place, folders, names in os.walk(folder, onerror=refuse):
        for name in tuple(folders):
            if _is_litter(name):
                skipped["hidden or system folders"] += 1
                folders.remove(name)
            elif deep and os.path.islink(os.path.join(place, name)):
                skipped["links to folders"] += 1
        for name in set(names) - {INDEX}:
            suffix = os.path.splitext(name)[1].lower()
            if _is_litter(name):
                skipped["hidden or system files"] += 1
            elif suffix in IMAGE_SUFFIXES:
                files.append(Path(place) / name)
            else:
                skipped[f"{suffix} files" if suffix else "files without a suffix"] += 1
        if not deep:
            break
    return Found(sorted(files), skipped)


def _is_litter(name: str) -> bool:
    return name.startswith(".") or name.lower() in _LITTER


def image_files(path: Path) -> list[Path]:
    """Returns the sorted image files in a folder, at any depth; [path] for a file."""
    return find_images(path).files if path.is_dir() else [path]


def read_image(path: str | Path, image_shape: Sequence[int]) -> np.ndarray:
    """Reads one image file, turned upright as its EXIF orientation says.

    Args:
      path: JPEG, PNG, WebP, BMP, GIF or TIFF; if it holds several pictures, the first
        is used.
      image_shape: (H, W, C) to convert to.

    Returns:
      uint8 [H,W,C].

    Raises:
      DPMixError: the file cannot be read; the message names it.
    """
    with _refused_by_name(path), _opened(path) as image:
        return fit_image(image, image_shape)


def image_size(path: str | Path, data: bytes) -> tuple[int, int]:
    """Decodes a whole image file, as read_image does, and returns its size.

    Args:
      path: the file's name, for error messages.
      data: the file's content.

    Returns:
      (width, height), once upright.

    Raises:
      DPMixError: read_image would refuse it.
    """
    with _refused_by_name(path), _opened(io.BytesIO(data)) as image:
        return _upright(_in_eight_bits(image)).size


def fit_image(image: Image.Image, image_shape: Sequence[int]) -> np.ndarray:
    """Turns an image upright, converts it to grey or RGB, resizes with antialiasing.

    Of sixteen bits the higher eight are kept; transparency is dropped; for an
    animation, the first picture is used.

    Args:
      image: a Pillow image.
      image_shape: (H, W, C), C = 1 or 3.

    Returns:
      uint8 [H,W,C].

    Raises:
      ValueError: the image has more than sixteen bits, or uses only twelve of sixteen.
    """
    height, width, channels = image_shape
    image = _upright(_in_eight_bits(image))
    image = image.convert("L" if channels == 1 else "RGB")
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling.LANCZOS)
    return np.asarray(image, np.uint8).reshape(tuple(image_shape))


def to_png(image: np.ndarray, **settings) -> bytes:
    """Encodes an image, uint8 [H,W,C]; settings are those of Pillow's `save`."""
    buffer = io.BytesIO()
    pixels = image[..., 0] if image.shape[-1] == 1 else image
    Image.fromarray(pixels).save(buffer, "PNG", **settings)
    return buffer.getvalue()


def exif_orientation(exif: bytes) -> int:
    """Finds the orientation in an image's EXIF data.

    Args:
      exif: a TIFF header and its first directory, with or without "Exif" before it.

    Returns:
      1 to 8; 1, which is upright, if there is none or the data is damaged.
    """
    while exif.startswith(_EXIF):
        exif = exif[len(_EXIF) :]
    if exif[:2] not in (b"II", b"MM"):
        return 1

    def number(at: int, size: int) -> int:
        part = exif[at : at + size]
        return int.from_bytes(part, "little" if exif[:2] == b"II" else "big")

    first = number(4, 4) + 2
    last = min(first + 12 * number(first - 2, 2), len(exif))
    for entry in range(first, last, 12):
        if number(entry, 2) == ORIENTATION_TAG:
            value = number(entry + 8, 2)
            return value if value in _TURNS else 1
    return 1


def _upright(image: Image.Image) -> Image.Image:
    """Turns an image as its EXIF orientation says; Pillow turns TIFF by itself."""
    image.load()  # PNG may have its EXIF data after the pixels
    if image.format == "TIFF":
        return image
    turn = _TURNS.get(exif_orientation(image.info.get("exif", b"")))
    return image if turn is None else image.transpose(turn)


def _in_eight_bits(image: Image.Image) -> Image.Image:
    """Keeps the higher eight of sixteen bits, as Pillow itself does for colours."""
    if image.mode == "F":
        raise _UnsuitableError(
            "its pixels are floats of unknown range: convert it to 8 bits"
        )
    # The file's pixel format is known only until the pixels are loaded.
    kept = str(getattr(image, "tile", ""))
    if image.mode.startswith("I"):  # Pillow would clip everything above 255
        values = np.asarray(image, np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise _UnsuitableError(
                f"its values are from {values.min()} to {values.max()}, beyond 16 "
                "bits: convert it to 8 bits"
            )
        brightest = int(values.max())
        turned = Image.fromarray((values // 256).astype(np.uint8))
        turned.info, turned.format = image.info, image.format
        image = turned
    elif re.search(r";16[BLN]'", kept):
        colours = [band for band in image.getbands() if band != "A"]
        high = max(np.asarray(image.getchannel(band)).max() for band in colours)
        brightest = 256 * int(high) + 255
    else:
        return image
    if brightest <= TWELVE_BITS:
        raise _UnsuitableError(
            f"16 bits whose brightest value is at most {brightest}: it looks like "
            "12-bit data and would be nearly black. Stretch it to 16 bits, or convert "
            "it to 8"
        )
    return image


@contextlib.contextmanager
def _opened(file: str | Path | io.BytesIO) -> Iterator[Image.Image]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        try:
            image = Image.open(file, formats=_FORMATS)
        except Image.DecompressionBombError as error:
            raise _too_large(str(error)) from error
        with image:
            if image.width * image.height > MOST_PIXELS:
                raise _too_large(f"{image.width}x{image.height}")
            yield image


def _too_large(what: str) -> _UnsuitableError:
    return _UnsuitableError(f"{what}: over {MOST_PIXELS:,} pixels. Shrink it")


@contextlib.contextmanager
def _refused_by_name(path: str | Path) -> Iterator[None]:
    try:
        yield
    except MemoryError:
        raise
    except _UnsuitableError as error:
        raise DPMixError(f"Unreadable image: {path} ({error}).") from error
    except Exception as error:  # Pillow may raise anything on a broken file
        raise DPMixError(
            f"Unreadable image: {path} ({error}). Expected {_EXPECTED}; replace or "
            "remove it."
        ) from error
