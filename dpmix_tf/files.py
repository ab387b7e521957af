"""Files that are either whole or not there."""

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from dpmix_tf.errors import DPMixError

TEMPORARY = ".dpmix_tf_"  # how the names of folders that are being written begin


def write_atomic(
    path: str | Path, write: Callable[[BinaryIO], object], *, private: bool = False
) -> None:
    """Writes a file under a temporary name, then renames it into place.

    Whatever happens meanwhile, `path` holds its old content or its new one, whole.

    Args:
      path: where to; its folder must exist.
      write: is handed the open binary file.
      private: make it readable by its owner alone (mode 0600).

    Raises:
      DPMixError: the disk is full, or the folder cannot be written to.
    """
    path = Path(path)
    temporary = None
    try:
        handle, temporary = tempfile.mkstemp(
            dir=path.parent, prefix=f".{path.name}.", suffix=".tmp"
        )
        with os.fdopen(handle, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        if not private:
            os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        if temporary is not None:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)
    _sync(path.parent)


def write_folder_atomic(path: str | Path, write: Callable[[Path], object]) -> None:
    """Writes a folder under a hidden temporary name, then renames it into place.

    Args:
      path: where to; must not exist, its own folder must.
      write: is handed an empty folder.

    Raises:
      DPMixError: the disk is full, or the folder cannot be written to.
    """
    path = Path(path)
    with temporary_folder(path) as temporary:
        write(temporary)
        for entry in (temporary, *temporary.rglob("*")):
            os.chmod(entry, (0o777 if entry.is_dir() else 0o666) & ~_umask())
            _sync(entry)
        os.rename(temporary, path)
    _sync(path.parent)


@contextlib.contextmanager
def temporary_folder(path: Path) -> Iterator[Path]:
    """Makes an empty hidden folder beside `path`, and removes it.

    Raises:
      DPMixError: whatever the operating system refuses meanwhile; names `path`.
    """
    temporary = None
    try:
        temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=TEMPORARY))
        yield temporary
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def cannot_write(path: Path, error: OSError) -> DPMixError:
    """Says why a file or folder was not written."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    return DPMixError(
        f"Cannot write {path}: {error.strerror or error}. "
        + (
            "The disk is full; what was there before is untouched. Free space and "
            "run the same command again."
            if full
            else "Choose a folder that can be written to."
        )
    )


def _sync(path: Path) -> None:
    """Makes sure that a power failure does not undo what was written."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_text_atomic(path: str | Path, text: str) -> None:
    """Writes text as UTF-8: see write_atomic."""
    write_atomic(path, lambda file: file.write(text.encode()))


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
