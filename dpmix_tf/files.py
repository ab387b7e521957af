"""User-given paths, locks, and files that are either complete or absent."""

import contextlib
import errno
import fcntl
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, TextIO

from dpmix_tf.errors import DPMixError

TEMPORARY = ".dpmix_tf_"  # prefix of the names of folders that are being written

# gs://bucket, s3://..., https://...; pathlib reduces two slashes to one.
_REMOTE = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")

# What fsync returns where a file system cannot sync (folders, on some FUSE and network
# file systems). Renames are atomic nevertheless; what a power failure undoes depends on
# the file system.
_CANNOT_SYNC = {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}


def is_remote(value: str | os.PathLike[str]) -> bool:
    """Whether a path is an address such as gs://bucket/folder."""
    return _REMOTE.match(os.fspath(value)) is not None


def local_path(value: str | os.PathLike[str], what: str = "The path") -> Path:
    """Returns the local path that a user gave; every such path must pass through here.

    Args:
      value: a path; a leading `~` or `~user` is that user's home folder.
      what: what the path is for, which begins error messages, such as "--workdir".

    Returns:
      The path, relative where `value` is. Passing it in again returns it unchanged.

    Raises:
      DPMixError: not a path, empty, of an unknown user, or a remote address.
    """
    text = os.fspath(value) if isinstance(value, (str, os.PathLike)) else None
    if not isinstance(text, str) or not text.strip() or "\0" in text:
        raise DPMixError(f"{what} must be a file or folder path, received: {value!r}.")
    if is_remote(text):
        raise DPMixError(
            f"{what} is a remote address: {text}. dpmix_tf reads and writes local "
            "files only: a run's secrets are protected by owner-only modes and locks, "
            "which do not exist there. Give a local path; copy inputs to it first, and "
            "publish results from it afterwards."
        )
    expanded = os.path.expanduser(text)
    if expanded.startswith("~"):
        raise DPMixError(
            f"{what} begins with the home folder of a user who does not exist: {text}. "
            f"For a file with that name, write ./{text}."
        )
    path = Path(expanded)
    # "./~x" and "./gs:/x" lose their dot in a Path, and would be misread if passed in
    # again.
    again = str(path)
    return path.absolute() if again.startswith("~") or is_remote(again) else path


def lock_file(path: Path, *, wait: bool, shared: bool = False) -> TextIO:
    """Opens a file, created if missing, that one process at a time may hold.

    Args:
      path: the file; its folder must exist.
      wait: whether to wait while another process holds it.
      shared: hold it together with others that do so with `shared`.

    Returns:
      The open file. Closing it, or the end of the process, releases the lock.

    Raises:
      BlockingIOError: another process holds it, and `wait` is False.
      DPMixError: the file cannot be written, or its file system has no locks.
    """
    try:
        file = open(path, "w")  # noqa: SIM115, held open
    except OSError as error:
        raise cannot_write(path, error) from error
    try:
        how = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
        fcntl.flock(file, how | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        file.close()
        raise
    except OSError as error:
        file.close()
        raise DPMixError(
            f"The file system of {path.parent} has no file locks (flock: "
            f"{error.strerror}). Without one, two processes could write there at once, "
            "and two runs with one seed would share their noise. Choose a folder on "
            "another disk, such as a local one."
        ) from error
    except BaseException:  # interrupted while waiting
        file.close()
        raise
    return file


def write_atomic(
    path: str | Path, write: Callable[[BinaryIO], object], *, private: bool = False
) -> None:
    """Writes a file under a temporary name, then renames it into place.

    Whatever happens meanwhile, `path` holds its old content or its new one, complete.

    Args:
      path: the file to write; its folder must exist.
      write: called with the open binary file.
      private: make it readable by its owner alone (mode 0600).

    Raises:
      DPMixError: the disk is full, or the folder cannot be written to.
    """
    path = local_path(path)
    temporary = None
    try:
        handle, temporary = tempfile.mkstemp(
            dir=path.parent, prefix=f".{path.name}.", suffix=".tmp"
        )
        with os.fdopen(handle, "wb") as file:
            write(file)
            file.flush()
            _sync(file.fileno())
        if not private:
            os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
        _sync_path(path.parent)
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        if temporary is not None:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)


def write_folder_atomic(path: str | Path, write: Callable[[Path], object]) -> None:
    """Writes a folder under a hidden temporary name, then renames it into place.

    Args:
      path: the folder to write; it must not exist, but its parent folder must.
      write: called with an empty folder.

    Raises:
      DPMixError: the disk is full, or the folder cannot be written to.
    """
    path = local_path(path)
    with temporary_folder(path) as temporary:
        write(temporary)
        for entry in (temporary, *temporary.rglob("*")):
            os.chmod(entry, (0o777 if entry.is_dir() else 0o666) & ~_umask())
            _sync_path(entry)
        os.rename(temporary, path)
        _sync_path(path.parent)


@contextlib.contextmanager
def temporary_folder(path: Path) -> Iterator[Path]:
    """Makes an empty hidden folder beside `path`, and removes it afterwards.

    Raises:
      DPMixError: the operating system reports an error meanwhile; names `path`.
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
    """Returns an error that says why a file or folder was not written."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    return DPMixError(
        f"Cannot write {path}: {error.strerror or error}. "
        + (
            "The disk is full; existing files are untouched. Free some space and "
            "run the same command again."
            if full
            else "Choose a folder that can be written to."
        )
    )


def _sync_path(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        _sync(handle)
    finally:
        os.close(handle)


def _sync(handle: int) -> None:
    """Ensures that a power failure does not undo what was written.

    Raises:
      OSError: the disk failed, or is full.
    """
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in _CANNOT_SYNC:
            raise


def write_text_atomic(path: str | Path, text: str) -> None:
    """Writes text as UTF-8; see write_atomic."""
    write_atomic(path, lambda file: file.write(text.encode()))


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
