"""Predictions for the images that a table lists, written beside its own columns."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from dpmix_tf.data.sources import progress
from dpmix_tf.data.table_file import TextTable, quoted
from dpmix_tf.errors import DPMixError
from dpmix_tf.files import local_path, write_atomic
from dpmix_tf.serving.client import Answer, Classify

_BATCH = 64  # images that are classified together


def write_predictions(
    classify: Classify,
    class_names: Sequence[str] | None,
    table: str,
    output: str,
    *,
    path_column: str = "path",
    folder: str | None = None,
) -> tuple[int, int]:
    """Classifies a table's images; writes a CSV file, complete or not at all.

    It has all columns of the table, then `predicted`, `probability_<class>` for each
    class and, where an image cannot be classified and these are blank, `error`.

    Args:
      classify: paths of images -> for each its answer, or why there is none.
      class_names: in the order of the labels; None if only the answers say them.
      table: path of a CSV or Parquet file.
      output: path of the CSV file to write.
      path_column: name of the column of paths.
      folder: that paths are relative to; by default the table's own.

    Returns:
      The number of rows; how many of them have an error.

    Raises:
      DPMixError: the table is invalid, it has a column of the same name as one of
        those that are added, or the server answers for none of the first images.
    """
    rows = TextTable(table)
    paths = rows.text(path_column).to_pylist()
    place = rows.path.parent if folder is None else local_path(folder, "--data_dir")
    target = local_path(output, "--output")
    if target.exists() and target.samefile(rows.path):
        raise DPMixError(
            f"--output is the table itself, {target}. Give another file's name."
        )
    starts = progress(range(0, len(rows), _BATCH), "Classifying")
    batches = (
        _answers(classify, paths[start : start + _BATCH], place) for start in starts
    )
    first = next(batches)
    names = class_names or _names_in(first)
    added = ["predicted", *(f"probability_{name}" for name in names), "error"]
    taken = [name for name in added if name in rows.columns]
    if taken:
        raise DPMixError(
            f"{rows.path} already has columns named {quoted(taken)}, expected none of "
            "those that predictions add. Rename or remove them."
        )
    columns = [rows.text(name).to_pylist() for name in rows.columns]
    failed = 0

    def write(file: BinaryIO) -> None:
        nonlocal failed
        text = io.TextIOWrapper(file, "utf-8", newline="")
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow([*rows.columns, *added])
        position, answers = 0, first
        while answers:
            for answer in answers:
                known = [column[position] for column in columns]
                writer.writerow(known + _cells(answer, names))
                failed += isinstance(answer, DPMixError)
                position += 1
            answers = next(batches, [])
        text.detach()  # flushes; the file is closed by its owner

    write_atomic(target, write)
    return len(rows), failed


def _answers(
    classify: Classify, paths: Sequence[str], folder: Path
) -> list[Answer | DPMixError]:
    """Classifies a batch, of which some paths may be blank."""
    given = [folder / path for path in paths if path.strip()]
    answers = iter(classify(given) if given else [])
    return [
        next(answers) if path.strip() else DPMixError("The path is blank.")
        for path in paths
    ]


def _names_in(answers: list[Answer | DPMixError]) -> list[str]:
    for answer in answers:
        if not isinstance(answer, DPMixError):
            return sorted(answer.classes)
    raise DPMixError(
        f"None of the first {len(answers)} images could be classified, so nothing was "
        f"written. The first: {answers[0]}"
    )


def _cells(answer: Answer | DPMixError, names: Sequence[str]) -> list[str]:
    if isinstance(answer, DPMixError):
        return [*[""] * (len(names) + 1), str(answer)]
    of = dict(zip(answer.classes, answer.probabilities, strict=True))
    return [answer.classes[0], *(f"{of[name]:.6f}" for name in names), ""]
