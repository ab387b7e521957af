"""Checkpoints: one file each, complete or absent, readable only by the owner.

A checkpoint is an uncompressed .npz file of plain arrays (nothing pickled) and one JSON
text. It holds the run's secret seed: whoever reads it can subtract the noise.
"""

import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

from dpmix_tf.errors import DPMixError
from dpmix_tf.files import write_atomic

_METADATA = "metadata"


def save(
    folder: Path, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, Any]
) -> Path:
    """Writes the checkpoint of one update.

    Args:
      folder: existing folder of the run's checkpoints.
      arrays: the arrays to save, by name.
      metadata: JSON-able; must hold "updates", which names the file.

    Returns:
      The file's path.

    Raises:
      DPMixError: the file cannot be written; older checkpoints are untouched.
    """
    path = folder / f"update_{metadata['updates']:09d}.npz"
    text = np.frombuffer(json.dumps(dict(metadata)).encode(), np.uint8)
    write_atomic(
        path,
        lambda file: np.savez(file, **{_METADATA: text}, **arrays),
        private=True,
    )
    return path


def prune(folder: Path, keep: int) -> None:
    """Removes all but the `keep` newest checkpoints."""
    for path in _newest_first(folder)[keep:]:
        path.unlink()


def load_latest(folder: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]] | None:
    """Reads the newest intact checkpoint, skipping broken ones with a warning.

    Returns:
      (arrays, metadata), or None if there is no checkpoint at all.

    Raises:
      DPMixError: there are checkpoints, and every one is broken.
    """
    paths = _newest_first(folder)
    for path in paths:
        try:
            return _load(path)
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            # Not the error's message: it may quote the file, which holds the seed.
            logging.warning(
                "Checkpoint %s is broken (%s); trying the one before it.",
                path,
                type(error).__name__,
            )
    if paths:
        raise DPMixError(
            f"Every checkpoint in {folder} is broken. What the run has spent is in "
            "privacy.json. Restore a checkpoint from a backup, or start in a new "
            "workdir."
        )
    return None


def _newest_first(folder: Path) -> list[Path]:
    return sorted(folder.glob("update_*.npz"), reverse=True)


def _load(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    with np.load(path, allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    metadata = json.loads(arrays.pop(_METADATA).tobytes())
    return arrays, metadata
