"""Image files: finding, reading, converting and resizing them."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from dpmix_tf.errors import DPMixError

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
        with Image.open(path, formats=("JPEG", "PNG")) as image:
            return fit_image(image, image_shape)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DPMixError(
            f"Unreadable image: {path} ({error}). Expected a JPEG or PNG file; replace "
            "or remove it."
        ) from error


def fit_image(image: Image.Image, image_shape: Sequence[int]) -> np.ndarray:
    """Converts to grey or RGB and resizes with antialiasing: uint8 [H,W,C]."""
    height, width, channels = image_shape
    image = image.convert("L" if channels == 1 else "RGB")
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling.LANCZOS)
    return np.asarray(image, np.uint8).reshape(tuple(image_shape))
