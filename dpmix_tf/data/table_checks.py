"""What a table of images says, checked for all rows before any image is read.

Each check works on whole columns, so that a million rows take seconds, and its error
counts all rows that it refuses and names the first few.
"""

import os
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dpmix_tf.data.image_folder import PARTS
from dpmix_tf.data.sources import some_of
from dpmix_tf.data.table_file import TextTable, quoted, same_spelling
from dpmix_tf.errors import DPMixError
from dpmix_tf.images import IMAGE_SUFFIXES

# Labels of one of several columns; what is not known is -1 or blank, as in CheXpert.
_MARKS = {
    **dict.fromkeys(("1", "1.0"), 1.0),
    **dict.fromkeys(("0", "0.0"), 0.0),
    **dict.fromkeys(("-1", "-1.0", ""), np.nan),
}
_INTEGER = re.compile(r"-?[0-9]{1,9}")
_LONGEST_NAME = 200  # characters of a person's name, since all rows take as many


def image_paths(table: TextTable, column: str, folder: Path) -> pa.Array:
    """Returns the paths of a table's images, after finding all of them on disk.

    Args:
      table: the table.
      column: name of its column of paths, absolute or relative to `folder`.
      folder: of the images.

    Returns:
      Arrow strings [rows], each another file: relative to `folder`, except outside it.

    Raises:
      DPMixError: a cell is blank, a remote address or not named like an image; a file
        is missing; or one is listed twice.
    """
    paths = table.text(column)
    _refuse_blank(table, column, paths, "an image's path")
    remote = pc.match_substring_regex(paths, r"^[A-Za-z][A-Za-z0-9+.-]+:/")
    if pc.any(remote).as_py():
        raise _refused(
            table,
            pc.filter(paths, remote),
            "paths that are remote addresses",
            "Copy the images to this machine, and give their local paths.",
        )
    endings = "|".join(suffix[1:] for suffix in IMAGE_SUFFIXES)
    known = pc.match_substring_regex(paths, rf"\.(?:{endings})$", ignore_case=True)
    if not pc.all(known).as_py():
        raise _refused(
            table,
            pc.filter(paths, pc.invert(known)),
            "paths that do not end like an image",
            f"Expected {', '.join(IMAGE_SUFFIXES)}; convert the images, or name the "
            "right column of paths.",
        )
    paths = _plain(paths, folder)
    _refuse_twice(table, paths)
    _refuse_missing(table, paths, folder)
    return paths


def class_names_of(labels: pa.Array) -> list[str]:
    """Returns the distinct labels, sorted as numbers if all of them are integers."""
    names = pc.unique(labels).to_pylist()
    if all(map(_INTEGER.fullmatch, names)):
        return sorted(names, key=int)
    return sorted(names)


def single_labels(
    table: TextTable, column: str, class_names: Sequence[str] | None
) -> tuple[tuple[str, ...], np.ndarray]:
    """Reads a column with one label per image.

    Args:
      table: the table.
      column: its name.
      class_names: names of the classes; by default, those in the table. Integers in the
        column index them, unless a class has an integer as its name.

    Returns:
      The class names; the labels, int32 [rows].

    Raises:
      DPMixError: a cell is blank or negative, or is not one of the classes.
    """
    cells = table.trimmed(column)
    nan = pc.equal(pc.utf8_lower(cells), "nan")
    _refuse_blank(table, column, pc.if_else(nan, "", cells), "a label")
    encoded = cells.dictionary_encode()
    found = encoded.dictionary.to_pylist()
    counts = np.bincount(encoded.indices.to_numpy(), minlength=len(found))
    integers = all(map(_INTEGER.fullmatch, found))
    names = class_names_of(cells) if class_names is None else list(class_names)
    indexed = integers and not any(map(_INTEGER.fullmatch, names))
    known = {str(i): i for i in range(len(names))} if indexed else {}
    known |= {same_spelling(name): index for index, name in enumerate(names)}
    if class_names is None and integers:
        known = {name: index for name, index in known.items() if int(name) >= 0}
    unknown = {
        name: int(count)
        for name, count in zip(found, counts, strict=True)
        if name not in known
    }
    if unknown:
        each = [f"{name!r} ({count:,})" for name, count in unknown.items()]
        expected = (
            f"integers from 0 to {len(names) - 1}"
            if indexed
            else "integers from 0, or names"
            if class_names is None
            else some_of(names)
        )
        raise DPMixError(
            f"Column {column!r} of {table.path} has unknown labels in "
            f"{sum(unknown.values()):,} rows: {some_of(each)}. Expected {expected}. "
            "Correct these cells, remove their rows, or give other class names."
        )
    codes = np.array([known[name] for name in found], np.int32)
    return tuple(names), codes[encoded.indices.to_numpy()]


def several_labels(table: TextTable, columns: Sequence[str]) -> np.ndarray:
    """Reads columns that say of each class whether it applies to an image.

    Returns:
      float32 [rows,L]: 1, 0, or NaN for a blank cell or -1.

    Raises:
      DPMixError: a column is named twice, or a cell holds something else.
    """
    table.require(*columns)
    if len(set(columns)) < len(columns):
        raise DPMixError(
            f"The label columns {', '.join(columns)} name a column twice. Name each "
            "once."
        )
    labels = np.empty((len(table), len(columns)), np.float32)
    for position, name in enumerate(columns):
        encoded = table.trimmed(name).dictionary_encode()
        found = encoded.dictionary.to_pylist()
        codes = encoded.indices.to_numpy()
        others = [cell for cell in found if cell not in _MARKS]
        if others:
            counts = np.bincount(codes, minlength=len(found))
            rows = sum(int(counts[found.index(cell)]) for cell in others)
            raise DPMixError(
                f"Column {name!r} of {table.path} holds {quoted(others)} in {rows:,} "
                "rows. Expected 1 where the class applies, 0 where it does not, and -1 "
                "or blank where it is unknown."
            )
        labels[:, position] = np.array([_MARKS[cell] for cell in found])[codes]
    return labels


def people_of(table: TextTable, column: str) -> np.ndarray:
    """Reads the column of people: str [rows], whose image each row is.

    Raises:
      DPMixError: a cell is blank, or too long to be a name.
    """
    people = table.trimmed(column)
    missing = pc.is_in(pc.utf8_lower(people), pa.array(["nan", "none", "<na>"]))
    _refuse_blank(table, column, pc.if_else(missing, "", people), "a person's name")
    longest = pc.max(pc.utf8_length(people)).as_py()
    if longest > _LONGEST_NAME:
        raise DPMixError(
            f"Column {column!r} of {table.path} holds a person's name of {longest:,} "
            f"characters, expected at most {_LONGEST_NAME}. Is it the right column?"
        )
    encoded = people.dictionary_encode()
    names = np.array(encoded.dictionary.to_pylist(), str)
    return names[encoded.indices.to_numpy()]


def split_rows(
    table: TextTable, column: str, people: np.ndarray | None
) -> dict[str, np.ndarray]:
    """Reads the column of the parts that images belong to.

    Args:
      table: the table.
      column: its name; its words are those of folders of parts, such as "train".
      people: whose image each row is, or None.

    Returns:
      "train", "test" and perhaps "validation" -> the rows of the part, int64.

    Raises:
      DPMixError: a word is not known, there is no train or test part, or a person has
        images in two parts.
    """
    encoded = pc.utf8_lower(table.trimmed(column)).dictionary_encode()
    words = encoded.dictionary.to_pylist()
    codes = encoded.indices.to_numpy()
    counts = np.bincount(codes, minlength=len(words))
    unknown = [
        f"{word!r} ({count:,})"
        for word, count in zip(words, counts, strict=True)
        if word not in PARTS
    ]
    if unknown:
        raise DPMixError(
            f"Column {column!r} of {table.path} names unknown parts: "
            f"{some_of(unknown)}. Expected {', '.join(PARTS)}. Correct these cells, or "
            "rename the column so that the parts are cut for you."
        )
    order = ("train", "validation", "test")
    parts = np.array([order.index(PARTS[word]) for word in words])[codes]
    rows = {
        name: np.where(parts == index)[0]
        for index, name in enumerate(order)
        if (parts == index).any()
    }
    missing = [name for name in ("train", "test") if name not in rows]
    if missing:
        raise DPMixError(
            f"Column {column!r} of {table.path} names no {' and no '.join(missing)} "
            f"part, only {', '.join(rows)}. Name both, or rename the column so that "
            "the parts are cut for you."
        )
    if people is not None:
        _refuse_people_in_two_parts(table, people, parts)
    return rows


def _refuse_people_in_two_parts(
    table: TextTable, people: np.ndarray, parts: np.ndarray
) -> None:
    encoded = pa.array(people).dictionary_encode()  # faster than sorting the names
    names = encoded.dictionary
    seen = np.zeros((len(names), int(parts.max()) + 1), bool)
    seen[encoded.indices.to_numpy(), parts] = True
    torn = seen.sum(axis=1) > 1
    if torn.any():
        first = quoted(names.filter(pa.array(torn)).to_pylist())
        raise DPMixError(
            f"{int(torn.sum()):,} of {len(names):,} people in {table.path} have images "
            f"in two parts: {first}. Accuracy on people whose images were trained on "
            "would be too high: move all images of a person to one part."
        )


def _plain(paths: pa.Array, folder: Path) -> pa.Array:
    """Writes each path in one way: relative to the folder if inside, without `./`."""
    odd = pc.match_substring_regex(paths, r"^/|(?:^|/)\.{0,2}/")
    if not pc.any(odd).as_py():
        return paths
    start = os.path.join(os.path.abspath(folder), "")
    written = [
        os.path.normpath(path).removeprefix(start)
        for path in pc.filter(paths, odd).to_pylist()
    ]
    return pc.replace_with_mask(paths, odd, pa.array(written, paths.type))


def _refuse_twice(table: TextTable, paths: pa.Array) -> None:
    encoded = paths.dictionary_encode()
    if len(encoded.dictionary) == len(paths):
        return
    counts = np.bincount(encoded.indices.to_numpy())
    twice = encoded.dictionary.filter(pa.array(counts > 1))
    raise _refused(
        table,
        twice,
        "images that are listed more than once",
        f"{len(paths) - len(encoded.dictionary):,} rows are too many. An image is one "
        "example: remove all but one of its rows, or give its classes one column each "
        "(data.label_columns).",
    )


def _refuse_missing(table: TextTable, paths: pa.Array, folder: Path) -> None:
    """Compares with the names in each folder, which is faster than asking per file."""
    folders = pc.unique(pc.replace_substring_regex(paths, r"[^/]*$", ""))
    found = [
        place + name
        for place in map(os.fsencode, folders.to_pylist())
        for name in _listing(os.path.join(os.fsencode(folder), place))
    ]
    there = pc.is_in(
        paths.cast(pa.large_binary()), value_set=pa.array(found, pa.large_binary())
    )
    if not pc.all(there).as_py():
        missing = pc.filter(paths, pc.invert(there))
        slashes = pc.any(pc.match_substring(missing, "\\")).as_py()
        raise _refused(
            table,
            missing,
            "images that are missing",
            f"Paths are relative to {folder}. "
            + ("Write / instead of \\ in paths. " if slashes else "")
            + "Set data.data_dir to the folder of the images, or remove these rows.",
        )


def _listing(folder: bytes) -> list[bytes]:
    """Names of the image files in a folder; [] if it cannot be read."""
    endings = tuple(map(os.fsencode, IMAGE_SUFFIXES))
    try:
        with os.scandir(folder) as entries:
            return [
                entry.name
                for entry in entries
                if entry.name.lower().endswith(endings) and entry.is_file()
            ]
    except (OSError, ValueError):  # a null byte is a ValueError
        return []


def _refuse_blank(table: TextTable, column: str, cells: pa.Array, what: str) -> None:
    blank = pc.equal(pc.utf8_trim_whitespace(cells), "").to_numpy(zero_copy_only=False)
    if blank.any():
        rows = [str(row + 1) for row in np.where(blank)[0]]
        raise DPMixError(
            f"Column {column!r} of {table.path} has {len(rows):,} blank cells: rows "
            f"{some_of(rows)}, counted from 1 below the names. Expected {what} in "
            "each: fill them in, or remove these rows."
        )


def _refused(table: TextTable, cells: pa.Array, what: str, advice: str) -> DPMixError:
    """Returns an error that counts the cells and names the first."""
    names = cells.slice(0, 5).to_pylist()
    more = f" and {len(cells) - 5:,} more" if len(cells) > 5 else ""
    return DPMixError(
        f"{table.path} lists {len(cells):,} {what}: "
        f"{', '.join(map(repr, names))}{more}. {advice}"
    )
