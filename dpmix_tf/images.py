"""Image files: finding, reading, converting and resizing them."""

import io
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from dpmix_tf.errors import DPMixError

# A small file can claim any size; decoding this many takes a quarter of a gigabyte.
MOST_PIXELS = 80_000_000

IMAGE_SUFFIXES = (".jpeg", ".jpg", ".png")


def class_folders(folder: Path) -> tuple[str, ...]:
    """The names of a folder's subfolders, which are its classes, in order."""
    return tuple(
        sorted(
            entry.name
            for entry in folder.iterdir()
            if entry.is_dir() and not entry.name.startswith(".")
        )
    )


def image_files(path: Path) -> list[Path]:
    """The image files in a folder, at any depth, in order; a file is its own list."""
    if not path.is_dir():
        return [path]
    return sorted(
        file for file in path.rglob("*") if file.suffix.lower() in IMAGE_SUFFIXES
    )


def read_image(path: str | Path, image_shape: Sequence[int]) -> np.ndarray:
    """Reads one image file.

    Args:
      path: JPEG or PNG.
      image_shape: (H, W, C) to convert to.

    Returns:
      uint8 [H,W,C].

    Raises:
      DPMixError: names the file that cannot be read.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path, formats=("JPEG", "PNG")) as image:
                if image.width * image.height > MOST_PIXELS:
                    raise ValueError(
                        f"{image.width}x{image.height}: over {MOST_PIXELS:,} pixels"
                    )
                return fit_image(image, image_shape)
    except MemoryError:
        raise
    except Exception as error:  # Pillow raises almost anything on a broken file
        raise DPMixError(
            f"Unreadable image: {path} ({error}). Expected a JPEG or PNG file; replace "
            "or remove it."
        ) from error


def fit_image(image: Image.Image, image_shape: Sequence[int]) -> np.ndarray:
    """Converts to grey or RGB and resizes with antialiasing: uint8 [H,W,C].

    Sixteen bits are scaled to eight; transparency is dropped; of an animation, the
    first picture counts.
    """
    height, width, channels = image_shape
    if image.mode.startswith("I"):  # Pillow would cut off all above 255
        image = Image.fromarray((np.asarray(image, np.int64) // 257).astype(np.uint8))
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
