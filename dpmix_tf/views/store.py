"""FeatureStore: rows of features and labels on disk, in blocks with checksums.

A block is a file that is either whole or absent, since it is written under a temporary
name and renamed. It ends with the SHA-256 of its content and of the store's key, so a
block of another store is never taken for one of this.
"""

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dpmix_tf.errors import DPMixError
from dpmix_tf.files import local_path, write_atomic

DTYPES = ("float16", "float32")

_DIGEST_BYTES = hashlib.sha256().digest_size
_BLOCK_BYTES = 64 * 2**20  # about; a block holds whole rows
_KEY = "key.json"
_FIELDS = ("features", "classes", "weights")  # of a row


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layout:
    """What a store holds.

    Attributes:
      rows: N, one per example.
      views: (R, K), visits of a row and views of a visit.
      features: shape of one view's features.
      dtype: of the features, one of DTYPES.
      classes: number of classes.
    """

    rows: int
    views: tuple[int, int]
    features: tuple[int, ...]
    dtype: str
    classes: int

    @property
    def row_type(self) -> np.dtype:
        """One row: features, and labels as two classes and their weights per view."""
        dtype = np.dtype(self.dtype).newbyteorder("<")
        return np.dtype(
            [
                ("features", dtype, (*self.views, *self.features)),
                ("classes", "<i4", (*self.views, 2)),
                ("weights", "<f4", (*self.views, 2)),
            ]
        )

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
        known = {"key": dict(key), "layout": dataclasses.asdict(layout)}
        text = json.dumps(known, sort_keys=True, indent=2)
        self.layout = layout
        self._digest = hashlib.sha256(text.encode()).digest()
        self.folder = (
            local_path(cache_dir, "The cache folder") / self._digest.hex()[:16]
        )
        self._blocks: dict[int, np.ndarray] = {}
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
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
            layout = Layout(**sizes)
            store = cls(folder.parent, known["key"], layout)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DPMixError(
                f"{folder} does not hold encoded views: {error}. Delete it."
            ) from error
        if store.folder.name != folder.name:
            shutil.rmtree(store.folder, ignore_errors=True)
            raise DPMixError(f"{folder} is named like another cache. Delete it.")
        return store

    def path(self, block: int) -> Path:
        """The file of a block."""
        return self.folder / f"block-{block:06d}.bin"

    def missing(self) -> list[int]:
        """The blocks that are absent or damaged; damaged ones are deleted.

        Reads every block that was not yet verified by this object.
        """
        return [block for block in range(self.layout.blocks) if not self._open(block)]

    def _open(self, block: int) -> bool:
        if block in self._blocks:
            return True
        path, rows = self.path(block), len(self.layout.rows_of(block))
        if not path.exists():
            return False
        size = rows * self.layout.row_type.itemsize
        if path.stat().st_size == size + _DIGEST_BYTES:
            content = np.memmap(path, np.uint8, "r")
            if self._checksum(block, content[:size]) == content[size:].tobytes():
                self._blocks[block] = content[:size].view(self.layout.row_type)
                return True
        path.unlink()
        return False

    def _checksum(self, block: int, content) -> bytes:
        start = hashlib.sha256(self._digest + block.to_bytes(8, "little"))
        start.update(content)
        return start.digest()

    def write(
        self, block: int, features: np.ndarray, classes: np.ndarray, weights: np.ndarray
    ) -> None:
        """Writes a block.

        Args:
          block: its number.
          features: float [rows,R,K,...].
          classes: int32 [rows,R,K,2], the classes that a view's label blends.
          weights: float32 [rows,R,K,2], their weights.

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
        made["classes"], made["weights"] = classes, weights
        content = made.view(np.uint8)

        def save(file):
            file.write(content)
            file.write(self._checksum(block, content))

        write_atomic(self.path(block), save, private=True)

    def read(
        self, rows: np.ndarray, visits: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Gathers one visit of each of some rows.

        Args:
          rows: int64 [n].
          visits: int32 [n], in [0, R).

        Returns:
          features [n,K,...] of the layout's dtype; classes, int32 [n,K,2], and weights,
          float32 [n,K,2], of the labels.

        Raises:
          DPMixError: a block is absent or damaged.
        """
        kind = self.layout.row_type
        features, classes, weights = made = [
            np.empty((len(rows), *kind[name].shape[1:]), kind[name].base)
            for name in _FIELDS
        ]
        blocks, places = np.divmod(rows, self.layout.rows_per_block)
        for block in np.unique(blocks):
            if not self._open(int(block)):
                raise DPMixError(
                    f"{self.path(int(block))} is gone or damaged. Run the same command "
                    "again: it is then made anew."
                )
            found = np.flatnonzero(blocks == block)
            for name, part in zip(_FIELDS, made, strict=True):
                stored = self._blocks[int(block)][name]
                part[found] = stored[places[found], visits[found]]
        return features, classes, weights

    def clear(self) -> None:
        """Deletes all blocks."""
        self._blocks.clear()
        for block in range(self.layout.blocks):
            self.path(block).unlink(missing_ok=True)
