"""FileIndex: digests and sizes of image files, read once and cached beside them."""

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Mapping, Sequence
from concurrent import futures
from pathlib import Path
from typing import NamedTuple

from dpmix_tf.data.sources import DECODERS, progress
from dpmix_tf.errors import DPMixError
from dpmix_tf.files import write_atomic
from dpmix_tf.images import image_size

# Increase this whenever the rules for refusing files change.
_VERSION = 1

# Nanoseconds: a file that changed this shortly before it was read may change again
# within the same tick of the disk's clock.
_UNSETTLED = 2 * 10**9


class Content(NamedTuple):
    """What an image file holds.

    Attributes:
      sha256: SHA-256 of its bytes, in hexadecimal.
      width: in pixels, once the image is upright.
      height: in pixels, once the image is upright.
    """

    sha256: str
    width: int
    height: int


class FileIndex:
    """Digests and sizes of image files, each read and decoded once.

    They are kept in a hidden file that only its owner can read. An entry stays valid as
    long as the file's size, its modification time and its inode's change time (which
    cannot be set back) are the same. If the index cannot be written, the files are read
    again at the next start.

    Args:
      index: path of the hidden file.
      files: name -> path of each image file.
    """

    def __init__(self, index: Path, files: Mapping[str, str]):
        self._index = index
        self._files = files
        self._known = _load(index)

    def contents(self, names: Sequence[str]) -> list[Content]:
        """Returns the contents of the named files; reads only new or changed ones.

        Raises:
          DPMixError: names the first files that cannot be read.
        """
        now = time.time_ns()
        stamps = {name: _stamp(self._files[name]) for name in names}
        new = {
            name: stamp
            for name, stamp in stamps.items()
            if self._known.get(name, [None])[0] != stamp
        }
        with futures.ThreadPoolExecutor(DECODERS) as pool:
            read = pool.map(lambda name: _read(self._files[name]), new)
            found = list(progress(read, "Reading the images", total=len(new)))
        messages = [content for content in found if isinstance(content, str)]
        if messages:
            more = f"\n... and {len(messages) - 5} more" if len(messages) > 5 else ""
            raise DPMixError("\n".join(messages[:5]) + more)
        for (name, stamp), content in zip(new.items(), found, strict=True):
            self._known[name] = [stamp, content]
        if new:
            self._save(now)
        return [Content(*self._known[name][1]) for name in names]

    def _save(self, now: int) -> None:
        kept = {
            name: self._known[name]
            for name in self._files
            if name in self._known and max(self._known[name][0][1:]) < now - _UNSETTLED
        }
        text = json.dumps({"version": _VERSION, "files": kept})
        with contextlib.suppress(DPMixError):  # then the files are read again
            write_atomic(
                self._index, lambda file: file.write(text.encode()), private=True
            )


def _load(path: Path) -> dict[str, list]:
    """File -> [stamp, content]; empty if the index is not one that we wrote."""
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


def _stamp(path: str) -> list[int]:
    """Changes whenever the file does; [] if it is missing, which reading reports."""
    try:
        stat = os.stat(path)
    except OSError:
        return []
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]


def _read(path: str) -> Content | str:
    """Returns what a file holds, or a message that says what is wrong with it."""
    try:
        data = Path(path).read_bytes()
        return Content(hashlib.sha256(data).hexdigest(), *image_size(path, data))
    except OSError as error:
        return f"Unreadable image: {path} ({error.strerror}). Replace or remove it."
    except DPMixError as error:
        return str(error)
