"""FeatureStore: rows of features and labels on disk, in blocks with checksums.

A block is a file that is either whole or absent, since it is written under a temporary
name and renamed. It ends with the SHA-256 of its content and of the store's key, so a
block of another store is never taken for one of this.
"""

import contextlib
import dataclasses
import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

from dpmix_tf.errors import DPMixError
from dpmix_tf.files import cannot_write, local_path, lock_file, write_atomic

DTYPES = ("float16", "float32")

_DIGEST_BYTES = hashlib.sha256().digest_size
_BLOCK_BYTES = 64 * 2**20  # about; a block holds whole rows
_KEY = "key.json"
_LOCK = "lock"
_NAME = re.compile("[0-9a-f]{16}")  # of a store's folder


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layout:
    """What a store holds.

    Attributes:
      rows: N, one per example.
      views: (R, K), visits of a row and views of a visit.
      features: shape of one view's features.
      dtype: of the features, one of DTYPES.
      classes: number of classes.
      several: whether a view has several labels, which are kept as they are.
    """

    rows: int
    views: tuple[int, int]
    features: tuple[int, ...]
    dtype: str
    classes: int
    several: bool = False

    @property
    def row_type(self) -> np.dtype:
        """One row: features, and labels as two classes and their weights per view.

        Of several labels all are kept, as "labels".
        """
        dtype = np.dtype(self.dtype).newbyteorder("<")
        labels: list[Any] = [
            ("classes", "<i4", (*self.views, 2)),
            ("weights", "<f4", (*self.views, 2)),
        ]
        if self.several:
            labels = [("labels", "<f4", (*self.views, self.classes))]
        return np.dtype([("features", dtype, (*self.views, *self.features)), *labels])

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of what a row holds: the features, then what there is of labels."""
        return self.row_type.names or ()

    @property
    def rows_per_block(self) -> int:
        """Rows in every block but the last."""
        return max(1, _BLOCK_BYTES // self.row_type.itemsize)

    @property
    def blocks(self) -> int:
        """Number of blocks."""
        return -(-self.rows // self.rows_per_block)

    @property
    def bytes(self) -> int:
        """Size of the whole store on disk."""
        return self.rows * self.row_type.itemsize + self.blocks * _DIGEST_BYTES

    def rows_of(self, block: int) -> range:
        """The rows that a block holds."""
        start = block * self.rows_per_block
        return range(start, min(start + self.rows_per_block, self.rows))


class FeatureStore:
    """Features and labels of all views of all examples, by (example, visit).

    Its files are private: they hold what an encoder makes of private images. They are
    readable by their owner alone, and nothing exports them.

    Args:
      cache_dir: folder of all stores; made if missing.
      key: JSON-able facts that determine the content, all of them.
      layout: shapes and types.

    Attributes:
      folder: the store's own, named by the digest of key and layout.
    """

    def __init__(
        self, cache_dir: str | Path, key: Mapping[str, Any], layout: Layout
    ) -> None:
        text, self._digest = _described(key, layout)
        self.key, self.layout = dict(key), layout
        cache_dir = local_path(cache_dir, "The cache folder")
        self.folder = cache_dir / _name(self._digest)
        self._blocks: dict[int, np.ndarray] = {}
        self._seen: dict[int, tuple[int, ...] | None] = {}  # files when verified
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise cannot_write(self.folder, error) from error
        if not (self.folder / _KEY).exists():
            write_atomic(
                self.folder / _KEY, lambda file: file.write(text.encode()), private=True
            )

    @classmethod
    def opened(cls, folder: str | Path) -> "FeatureStore":
        """Opens an existing store by its folder.

        Raises:
          DPMixError: the folder is not a store's, or its key does not fit its name.
        """
        folder = local_path(folder)
        try:
            known = json.loads((folder / _KEY).read_text())
            sizes: dict[str, Any] = known["layout"]
            for name in ("views", "features"):
                sizes[name] = tuple(sizes[name])
            key, layout = known["key"], Layout(**sizes)
            name = _name(_described(key, layout)[1])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DPMixError(
                f"{folder} does not hold encoded views: {error}. Delete it."
            ) from error
        if name != folder.name:
            raise DPMixError(f"{folder} is named like another cache. Delete it.")
        return cls(folder.parent, key, layout)

    @contextlib.contextmanager
    def lock(self, shard: tuple[int, int] = (1, 1)) -> Iterator[None]:
        """Lets one process at a time make blocks; others wait, and find what it made.

        Shards of one store may be made at the same time, and a process that makes the
        whole store waits for all of them.

        Args:
          shard: (i, n), see training.encode_views.
        """
        with contextlib.ExitStack() as held:
            held.enter_context(_patient(self.folder / _LOCK, shared=shard[1] > 1))
            if shard[1] > 1:
                name = f"{_LOCK}-{shard[0]}-of-{shard[1]}"
                held.enter_context(_patient(self.folder / name))
            else:  # nobody else is writing
                for left in self.folder.glob(".*.tmp"):  # of a process that was killed
                    left.unlink()
            yield

    def path(self, block: int) -> Path:
        """The file of a block."""
        return self.folder / f"block-{block:06d}.bin"

    def missing(self, among: Iterable[int] | None = None) -> list[int]:
        """The blocks that are absent or damaged; damaged ones are deleted.

        Reads every block that this object has not verified before, or whose file has
        changed since.

        Args:
          among: blocks to look at; by default all.
        """
        among = range(self.layout.blocks) if among is None else list(among)
        for block in among:
            if self._file(block) != self._seen.get(block):
                self._blocks.pop(block, None)
        return [block for block in among if not self._open(block)]

    def present(self) -> list[int]:
        """The blocks that have a file, whole or not."""
        return [b for b in range(self.layout.blocks) if self.path(b).exists()]

    def damaged(self) -> list[int]:
        """The blocks that are there with a wrong size or checksum; reads all of them.

        Unlike `missing`, it deletes none.
        """
        return [b for b in self.present() if self._content(b) is None]

    def _open(self, block: int) -> bool:
        if block in self._blocks:
            return True
        seen = self._file(block)
        content = self._content(block)
        if content is None:
            self.path(block).unlink(missing_ok=True)
            return False
        self._blocks[block] = content.view(self.layout.row_type)
        self._seen[block] = seen
        return True

    def _file(self, block: int) -> tuple[int, ...] | None:
        """What changes with a block's file; None if there is none."""
        try:
            found = self.path(block).stat()
        except FileNotFoundError:
            return None
        return found.st_ino, found.st_size, found.st_mtime_ns

    def _content(self, block: int) -> np.ndarray | None:
        """A block's rows as bytes; None if it is absent or damaged."""
        path, rows = self.path(block), len(self.layout.rows_of(block))
        size = rows * self.layout.row_type.itemsize
        try:
            if path.stat().st_size != size + _DIGEST_BYTES:
                return None
            content = np.memmap(path, np.uint8, "r")
        except FileNotFoundError:
            return None
        whole = self._checksum(block, content[:size]) == content[size:].tobytes()
        return content[:size] if whole else None

    def _checksum(self, block: int, content) -> bytes:
        start = hashlib.sha256(self._digest + block.to_bytes(8, "little"))
        start.update(content)
        return start.digest()

    def write(self, block: int, features: np.ndarray, *labels: np.ndarray) -> None:
        """Writes a block.

        Args:
          block: its number.
          features: float [rows,R,K,...].
          *labels: the classes that a view's label blends, int32 [rows,R,K,2], and
            their weights, float32 [rows,R,K,2]; or several, float32 [rows,R,K,classes].

        Raises:
          DPMixError: a feature does not fit the dtype; the disk is full.
        """
        made = np.zeros(len(self.layout.rows_of(block)), self.layout.row_type)
        with np.errstate(over="ignore"):
            made["features"] = features
        if not np.isfinite(made["features"]).all():
            largest = np.abs(np.asarray(features, np.float64)).max()
            raise DPMixError(
                f"The encoder's features reach {largest:g}, which {self.layout.dtype} "
                "cannot hold. Set run.cache_dtype=float32; if they are not finite, the "
                "encoder does not suit these images."
            )
        for name, part in zip(self.layout.parts[1:], labels, strict=True):
            made[name] = part
        content = made.view(np.uint8)

        def save(file):
            file.write(content)
            file.write(self._checksum(block, content))

        write_atomic(self.path(block), save, private=True)

    def read(self, rows: np.ndarray, visits: np.ndarray) -> tuple[np.ndarray, ...]:
        """Gathers one visit of each of some rows.

        Args:
          rows: int64 [n].
          visits: int32 [n], in [0, R).

        Returns:
          features [n,K,...] of the layout's dtype; classes, int32 [n,K,2], and weights,
          float32 [n,K,2], of the labels; or several labels, float32 [n,K,classes].

        Raises:
          DPMixError: a block is absent or damaged.
        """
        kind = self.layout.row_type
        made = {
            name: np.empty((len(rows), *kind[name].shape[1:]), kind[name].base)
            for name in self.layout.parts
        }
        blocks, places = np.divmod(rows, self.layout.rows_per_block)
        for block in np.unique(blocks):
            if not self._open(int(block)):
                raise DPMixError(
                    f"{self.path(int(block))} is gone or damaged. Run the same command "
                    "again: it is then made anew."
                )
            found = np.flatnonzero(blocks == block)
            for name, part in made.items():
                stored = self._blocks[int(block)][name]
                part[found] = stored[places[found], visits[found]]
        return tuple(made.values())

    def clear(self, among: Iterable[int] | None = None) -> None:
        """Deletes blocks; by default all."""
        for block in range(self.layout.blocks) if among is None else among:
            self._blocks.pop(block, None)
            self.path(block).unlink(missing_ok=True)


def store_folders(cache_dir: str | Path) -> list[Path]:
    """The folders of all stores in a cache folder, damaged ones too.

    Raises:
      DPMixError: there is no such folder.
    """
    cache_dir = local_path(cache_dir, "The cache folder")
    if not cache_dir.is_dir():
        raise DPMixError(f"There is no cache folder {cache_dir}.")
    return sorted(
        path
        for path in cache_dir.iterdir()
        if _NAME.fullmatch(path.name) and path.is_dir() and not path.is_symlink()
    )


def delete_store(folder: str | Path) -> None:
    """Deletes a store, and nothing else that may be in its folder.

    If interrupted, what is left is still a store, with fewer blocks.

    Raises:
      DPMixError: a process is making its blocks, or the folder holds other files.
    """
    folder = local_path(folder)
    try:
        lock = lock_file(folder / _LOCK, wait=False)
    except BlockingIOError as error:
        raise DPMixError(
            f"A process is encoding views in {folder}. Wait for it, or stop it first."
        ) from error
    with lock:
        try:
            for pattern in ("block-*.bin", ".*.tmp", _KEY, f"{_LOCK}*"):
                for path in folder.glob(pattern):
                    path.unlink()
            folder.rmdir()
        except OSError as error:
            raise DPMixError(
                f"Cannot delete {folder}: {error.strerror}. What is left there was not "
                "put there by dpmix_tf, or belongs to somebody else."
            ) from error


def _described(key: Mapping[str, Any], layout: Layout) -> tuple[str, bytes]:
    """A store's description, and the digest that stands for it."""
    known = {"key": dict(key), "layout": dataclasses.asdict(layout)}
    text = json.dumps(known, sort_keys=True, indent=2)
    return text, hashlib.sha256(text.encode()).digest()


def _name(digest: bytes) -> str:
    return digest.hex()[:16]


@contextlib.contextmanager
def _patient(path: Path, *, shared: bool = False) -> Iterator[None]:
    """Holds a lock, and says so if it must wait for it."""
    try:
        file = lock_file(path, wait=False, shared=shared)
    except BlockingIOError:
        logging.info("Waiting for another process that encodes into %s.", path.parent)
        file = lock_file(path, wait=True, shared=shared)
    with file:
        yield
