"""FileIndex: what image files hold, read once and remembered beside them."""

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Sequence
from concurrent import futures
from pathlib import Path
from typing import NamedTuple

from dpmix_tf.data.sources import DECODERS, progress
from dpmix_tf.errors import DPMixError
from dpmix_tf.files import write_atomic
from dpmix_tf.images import image_size

NAME = ".dpmix-tf-files.json"

# To be raised when other files are refused than before.
_VERSION = 1

# A file that changed this shortly before it was read may change again within the
# same tick of the disk's clock: nanoseconds.
_UNSETTLED = 2 * 10**9


class Content(NamedTuple):
    """What an image file holds.

    Attributes:
      sha256: of its bytes, hexadecimal.
      width: pixels, upright.
      height: pixels, upright.
    """

    sha256: str
    width: int
    height: int


class FileIndex:
    """Digests and sizes of a folder's image files, each read and decoded once.

    They are kept in the folder, in a hidden file for its owner's eyes alone, and hold
    as long as a file's size, its time of change and that of its inode (which cannot be
    set back) are the same. Where nothing can be written, files are read again at the
    next start.

    Args:
      folder: where the files lie.
      files: their paths.
    """

    def __init__(self, folder: Path, files: Sequence[Path]):
        self._path = folder / NAME
        self._files = files
        self._names = [path.relative_to(folder).as_posix() for path in files]
        self._known = _load(self._path)

    def contents(self, positions: Sequence[int]) -> list[Content]:
        """Returns what the files at `positions` hold; reads those that are new.

        Raises:
          DPMixError: names the first files that cannot be read.
        """
        now = time.time_ns()
        with futures.ThreadPoolExecutor(DECODERS) as pool:
            stamps = list(pool.map(self._stamp, positions))
            new = [
                (position, stamp)
                for position, stamp in zip(positions, stamps, strict=True)
                if self._known.get(self._names[position], [None])[0] != stamp
            ]
            read = pool.map(lambda one: _read(self._files[one[0]]), new)
            found = list(progress(read, "Reading the images", total=len(new)))
        messages = [content for content in found if isinstance(content, str)]
        if messages:
            more = f"\n... and {len(messages) - 5} more" if len(messages) > 5 else ""
            raise DPMixError("\n".join(messages[:5]) + more)
        for (position, stamp), content in zip(new, found, strict=True):
            self._known[self._names[position]] = [stamp, list(content)]
        if new:
            self._save(now)
        return [Content(*self._known[self._names[place]][1]) for place in positions]

    def _stamp(self, position: int) -> list[int]:
        try:
            stat = os.stat(self._files[position])
        except OSError:  # a link to nothing; reading it says so
            return []
        return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]

    def _save(self, now: int) -> None:
        kept = {
            name: self._known[name]
            for name in self._names
            if name in self._known and max(self._known[name][0][1:]) < now - _UNSETTLED
        }
        text = json.dumps({"version": _VERSION, "files": kept})
        with contextlib.suppress(DPMixError):  # then they are read again
            write_atomic(
                self._path, lambda file: file.write(text.encode()), private=True
            )


def _load(path: Path) -> dict[str, list]:
    """File -> [stamp, content]; nothing of a file that we did not write."""
    try:
        known = json.loads(path.read_text())
        if known["version"] != _VERSION:
            return {}
        return {
            name: [
                [int(part) for part in stamp],
                [str(sha256), int(width), int(height)],
            ]
            for name, (stamp, (sha256, width, height)) in known["files"].items()
        }
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return {}


def _read(path: Path) -> Content | str:
    """What a file holds, or what is wrong with it."""
    try:
        data = path.read_bytes()
        return Content(hashlib.sha256(data).hexdigest(), *image_size(path, data))
    except OSError as error:
        return f"Unreadable image: {path} ({error.strerror}). Replace or remove it."
    except DPMixError as error:
        return str(error)
