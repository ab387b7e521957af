"""Files of public weights: their digests, and loading them into a Keras model."""

import hashlib
from pathlib import Path

import h5py
import keras

from dpmix_tf.errors import DPMixError
from dpmix_tf.files import local_path


def digest(path: str | Path) -> str:
    """SHA-256 of a file, or of a folder's files and their names, in hexadecimal.

    Raises:
      DPMixError: the file or folder does not exist.
    """
    path = local_path(path, "The path of the weights")
    if not path.is_dir():
        return _file_digest(path)
    names = sorted(p.relative_to(path).as_posix() for p in path.rglob("*"))
    files = [name for name in names if (path / name).is_file()]
    listing = "".join(f"{name} {_file_digest(path / name)}\n" for name in files)
    return hashlib.sha256(listing.encode()).hexdigest()


def _file_digest(path: Path) -> str:
    try:
        with open(path, "rb") as file:
            digest = hashlib.sha256()
            while block := file.read(2**20):
                digest.update(block)
        return digest.hexdigest()
    except OSError as error:
        raise DPMixError(f"Weights file {path}: {error.strerror}.") from error


def load_weights(model: keras.Model, path: str | Path) -> None:
    """Loads an H5 weights file, of Keras 3 or in Keras 2's legacy layout.

    Raises:
      DPMixError: the file is truncated, not H5, or of another model.
    """
    path = local_path(path, "The path of the weights")
    if not h5py.is_hdf5(path):
        raise DPMixError(
            f"{path} is not an H5 file: it is missing, partly downloaded, or something "
            "else. Download it again."
        )
    try:
        model.load_weights(path)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise DPMixError(
            f"{path} does not hold the weights of {type(model).__name__}: "
            f"{str(error)[:300]}"
        ) from error
