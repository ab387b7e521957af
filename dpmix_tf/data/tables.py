"""TableSource: private images that a table lists, with their labels and people."""

import dataclasses
import functools
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from dpmix_tf.data import table_checks
from dpmix_tf.data.decoded import DecodedSource
from dpmix_tf.data.file_index import FileIndex
from dpmix_tf.data.sources import Examined, check_class_names, digest
from dpmix_tf.data.table_file import TextTable
from dpmix_tf.errors import DPMixError
from dpmix_tf.files import local_path
from dpmix_tf.images import INDEX, read_image
from dpmix_tf.tasks import MULTI_LABEL, SINGLE_LABEL

_SPLIT = "split"  # the name of a column that is used without being asked for


@dataclasses.dataclass(frozen=True, kw_only=True)
class Columns:
    """Names of a table's columns.

    Attributes:
      path: paths of the images.
      label: class names, or integers; one per image.
      labels: instead of `label`, one column per class: 1 where it applies to the image,
        0 where it does not, -1 or blank where it is unknown.
      person: whose image it is; None if it is not known.
      split: the part that an image belongs to: train, test or val; by default the
        column named "split", if there is one.
    """

    path: str = "path"
    label: str = "label"
    labels: tuple[str, ...] = ()
    person: str | None = None
    split: str | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class TableSettings:
    """The settings under `data` of a run that describe a table.

    Attributes:
      table: path of the table.
      path_column: as Columns.path.
      label_column: as Columns.label.
      label_columns: as Columns.labels.
      person: as Columns.person; the training records are then people, see PeopleSource.
      max_images_per_person: images of a person that are read at an update.
      split_column: as Columns.split.
      class_names: names of the classes, or a JSON file that lists them; by default, or
        if empty, those in the table.
    """

    table: str | None = None
    path_column: str = "path"
    label_column: str = "label"
    label_columns: Sequence[str] = ()
    person: str | None = None
    max_images_per_person: int = 16
    split_column: str | None = None
    class_names: str | Sequence[str] | None = ()

    @property
    def columns(self) -> Columns:
        """The names of the columns."""
        return Columns(
            path=self.path_column,
            label=self.label_column,
            labels=tuple(self.label_columns),
            person=self.person,
            split=self.split_column,
        )

    @property
    def names(self) -> str | Sequence[str] | None:
        """The class names; on a command line, a file's path is a tuple of one."""
        names = self.class_names
        if names and len(names) == 1 and names[0].lower().endswith(".json"):
            return names[0]
        return names or None

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> "TableSettings":
        """Picks these settings out of all those under `data`."""
        fields = (field.name for field in dataclasses.fields(cls))
        return cls(**{name: data[name] for name in fields if name in data})

    def refuse_for(self, name: str) -> None:
        """Refuses settings that other data sets would ignore.

        Raises:
          DPMixError: some differ from the defaults; names them.
        """
        given = [
            f"data.{field.name}"
            for field in dataclasses.fields(self)
            if (getattr(self, field.name) or None) != (field.default or None)
        ]
        if given:
            raise DPMixError(
                f"{', '.join(given)} cannot be used with data.name={name!r}: only a "
                "table has columns. Set data.name=table, or leave them out."
            )


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class _Rows:
    """A table's rows, shared by the sources of its parts.

    Attributes:
      table: the table.
      folder: that paths are relative to.
      paths: Arrow strings [rows].
      labels: int32 [rows] or float32 [rows,L].
      people: str [rows] or None.
    """

    table: TextTable
    folder: Path
    paths: pa.Array
    labels: np.ndarray
    people: np.ndarray | None

    @functools.cached_property
    def index(self) -> FileIndex:
        """The index of all rows' files: the parts share one, in one hidden file."""
        names = self.paths.to_pylist()
        files = {name: os.path.join(self.folder, name) for name in names}
        return FileIndex(self.folder / INDEX, files)


class TableSource(DecodedSource):
    """Images that a table lists, with the labels that it gives; see `open_table`.

    Images may have any size: when read, they are turned upright and resized to one
    size, with antialiasing.

    Attributes:
      task: MULTI_LABEL if there is one column of labels per class. Labels are then
        float32 [n,L], 1, 0 or NaN if unknown, instead of int32 [n].
      people: str [n], whose image each example is; None without a column of people.

    Args:
      rows: the table's rows.
      indices: the rows that are the examples, int64 [n].
      image_shape: (H, W, C) to convert to; C = 1 is grey, 3 is RGB.
      class_names: names by label; or, or of the columns of labels.
    """

    def __init__(
        self,
        rows: _Rows,
        indices: np.ndarray,
        image_shape: tuple[int, int, int],
        class_names: Sequence[str],
    ):
        super().__init__(image_shape, class_names, len(indices))
        self._rows = rows
        self._indices = indices
        self.task = MULTI_LABEL if rows.labels.ndim == 2 else SINGLE_LABEL
        self.people = None if rows.people is None else rows.people[indices]

    def _decode(self, index):
        row = int(self._indices[index])
        path = os.path.join(self._rows.folder, self._rows.paths[row].as_py())
        return read_image(path, self.image_shape), self._rows.labels[row]

    def examine(self, indices=None):
        """Examines files' bytes, paths, labels and people; caches what it has read."""
        indices = slice(None) if indices is None else np.asarray(indices, np.int64)
        rows = self._indices[indices]
        names = self._rows.paths.take(pa.array(rows)).to_pylist()
        labels = self._rows.labels[rows]
        if self.task == MULTI_LABEL:
            labels = np.where(np.isnan(labels), -1, labels).astype(np.int64)
        people = None if self.people is None else self.people[indices]

        def look(position, content):
            label = labels[position].tolist()
            person = () if people is None else (str(people[position]),)
            known = digest(
                bytes.fromhex(content.sha256),
                os.fsencode(names[position]),
                label,
                *person,
            )
            return known, label, (content.width, content.height)

        contents = self._rows.index.contents(names)
        found = Examined.of(map(look, range(len(names)), contents))
        return found._replace(labels=found.labels.reshape(labels.shape))

    def names(self):
        """Returns each image's path relative to the folder, or absolute outside it."""
        return self._rows.paths.take(pa.array(self._indices)).to_pylist()

    def column(self, name: str) -> np.ndarray:
        """Returns another column of the table, such as one of groups to compare.

        Returns:
          str [n], dtype object; "" where a cell is blank.

        Raises:
          DPMixError: there is no such column; names those there are.
        """
        cells = self._rows.table.text(name).dictionary_encode()
        values = np.array(cells.dictionary.to_pylist(), object)
        return values[cells.indices.to_numpy()[self._indices]]

    def subset(self, indices):
        """Returns a source of the examples at `indices`, with all that is known."""
        indices = self._indices[np.asarray(indices, np.int64)]
        return TableSource(self._rows, indices, self.image_shape, self.class_names)

    def check(self) -> None:
        """Decodes every image once, so that broken ones are reported before training.

        Raises:
          DPMixError: names the first images that cannot be read.
        """
        self.examine()


def open_table(
    path: str | Path,
    *,
    folder: str | Path | None = None,
    columns: Columns | None = None,
    image_shape: tuple[int, int, int],
    class_names: str | Path | Sequence[str] | None = None,
) -> dict[str, TableSource]:
    """Opens a table of private images, after checking all of it but the images' bytes.

    Args:
      path: a CSV or Parquet file; see TextTable.
      folder: that paths are relative to; by default the table's own.
      columns: names of its columns; by default those of Columns.
      image_shape: (H, W, C) to convert to; C = 1 is grey, 3 is RGB.
      class_names: names of the classes in the column of labels, in the order of the
        labels, or a JSON file that lists them; by default those in the table, sorted.

    Returns:
      "train", "test" and perhaps "validation" -> the examples of the part; or, without
      a column of parts, "train" -> all of them.

    Raises:
      DPMixError: the table is invalid; see TextTable and table_checks.
    """
    columns = columns or Columns()
    table = TextTable(path)
    place = table.path.parent if folder is None else local_path(folder, "data.data_dir")
    if not place.is_dir():
        raise DPMixError(
            f"The folder of the images, {place}, does not exist. Set data.data_dir to "
            f"the folder that the paths in {table.path} are relative to."
        )
    split = columns.split
    if split is None and _SPLIT in table.columns:
        split = _SPLIT
    wanted = (columns.person, split, *(columns.labels or (columns.label,)))
    table.require(columns.path, *(name for name in wanted if name is not None))
    names, labels = _labels(table, columns, class_names)
    people = None
    if columns.person is not None:
        people = table_checks.people_of(table, columns.person)
    parts = {"train": np.arange(len(table))}
    if split is not None:
        parts = table_checks.split_rows(table, split, people)
    paths = table_checks.image_paths(table, columns.path, place)
    rows = _Rows(table=table, folder=place, paths=paths, labels=labels, people=people)
    return {
        part: TableSource(rows, chosen, image_shape, names)
        for part, chosen in parts.items()
    }


def table_class_names(
    path: str | Path | None,
    columns: Columns,
    class_names: str | Path | Sequence[str] | None = None,
) -> tuple[str, ...]:
    """Returns the classes of a table, without its images, and itself only if needed.

    Raises:
      DPMixError: the table is needed and None, or invalid.
    """
    if columns.labels:
        _refuse_names(class_names)
        return check_class_names(columns.labels)
    if class_names:
        return _read_names(class_names)
    if path is None:
        raise DPMixError(
            "The classes of data.name='table' are those in its table: set data.table, "
            "or data.class_names."
        )
    return table_checks.single_labels(TextTable(path), columns.label, None)[0]


def _labels(
    table: TextTable, columns: Columns, class_names: Any
) -> tuple[tuple[str, ...], np.ndarray]:
    if columns.labels:
        _refuse_names(class_names)
        return columns.labels, table_checks.several_labels(table, columns.labels)
    names = _read_names(class_names) if class_names else None
    return table_checks.single_labels(table, columns.label, names)


def _refuse_names(class_names: Any) -> None:
    if class_names:
        raise DPMixError(
            f"Class names are given ({class_names}), and columns of labels, whose "
            "names are the classes. Leave the class names out."
        )


def _read_names(given: str | Path | Sequence[str]) -> tuple[str, ...]:
    """Returns class names, from a JSON file if one is given."""
    names: Any = given
    where = ""
    if isinstance(given, (str, Path)):
        path = local_path(given, "data.class_names")
        where = f" in {path}"
        try:
            names = json.loads(path.read_bytes())
        except (OSError, ValueError, RecursionError) as error:
            raise DPMixError(
                f"Cannot read class names from {path}: {error}. Expected a JSON file "
                'with a list of names, such as ["cat", "dog"].'
            ) from error
    valid = isinstance(names, (list, tuple)) and all(
        isinstance(name, str) for name in names
    )
    if not (valid and names and len(set(names)) == len(names)):
        raise DPMixError(
            f"Class names{where} must be a list of different names, received: "
            f"{str(names)[:200]}. Write them as text, each once."
        )
    return check_class_names(names)
