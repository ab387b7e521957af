"""TextTable: a CSV or Parquet file read whole, all of its cells as text."""

import unicodedata
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv, parquet

from dpmix_tf.data.sources import some_of
from dpmix_tf.errors import DPMixError
from dpmix_tf.files import local_path

SUFFIXES = (".csv", ".parquet")

_NEITHER = "Save it as CSV (commas, UTF-8, a first line of column names) or Parquet."


class TextTable:
    """A table whose columns are read as text, wherever they hold something else.

    Cells stay in Arrow's compact form, about as large as in a CSV file, until a column
    is asked for.

    Attributes:
      path: of the file, as it was given.
      columns: names of its columns, in order.

    Args:
      path: a CSV file in UTF-8, separated by commas, whose first line names its
        columns; or a Parquet file.

    Raises:
      DPMixError: the file is missing, is neither, is damaged, holds no rows, or has two
        columns of one name.
    """

    def __init__(self, path: str | Path):
        self.path = local_path(path, "The table")
        if self.path.is_dir():
            raise DPMixError(
                f"{self.path} is a folder, expected a table: a file that ends in "
                f"{' or '.join(SUFFIXES)}. For a folder of images, set "
                "data.name=image_folder and data.data_dir."
            )
        suffix = self.path.suffix.lower()
        if suffix not in SUFFIXES:
            raise DPMixError(
                f"{self.path} ends in {suffix or 'no suffix'}, expected "
                f"{' or '.join(SUFFIXES)}. {_NEITHER}"
            )
        try:
            self._table = _read_csv(self.path) if suffix == ".csv" else self._parquet()
        except (OSError, pa.ArrowException, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise DPMixError(
                f"Cannot read the table {self.path}: {reason.rstrip('.')}. {_NEITHER}"
            ) from error
        self.columns = tuple(self._table.column_names)
        twice = [name for name, count in Counter(self.columns).items() if count > 1]
        if twice:
            raise DPMixError(
                f"{self.path} has several columns named {quoted(twice)}. Rename or "
                "remove all but one."
            )
        if not len(self):
            raise DPMixError(
                f"{self.path} holds no rows below its column names. Add one row per "
                "image."
            )

    def __len__(self) -> int:
        """Number of rows."""
        return len(self._table)

    def require(self, *names: str) -> None:
        """Raises DPMixError unless the table has columns of these names."""
        missing = [name for name in names if name not in self.columns]
        if missing:
            raise DPMixError(
                f"{self.path} has no column {quoted(missing)}; its columns are "
                f"{', '.join(map(repr, self.columns))}. Name the right column, or "
                "rename it in the table."
            )

    def text(self, name: str) -> pa.Array:
        """Returns a column as Arrow strings [rows], "" where a cell is blank.

        Raises:
          DPMixError: there is no such column, or it holds lists or raw bytes.
        """
        self.require(name)
        column = self._table.column(name)
        kind = column.type
        try:
            if pa.types.is_boolean(kind):
                column = pc.cast(column, pa.int8())
            if pa.types.is_floating(kind):  # how some programs write blank cells
                column = pc.if_else(pc.is_nan(column), None, column)
            column = pc.fill_null(pc.cast(column, pa.large_string()), "")
        except pa.ArrowException as error:
            raise DPMixError(
                f"Column {name!r} of {self.path} holds {kind}, which cannot be read as "
                "text. Save it as text or numbers, or name another column."
            ) from error
        return column.combine_chunks()

    def trimmed(self, name: str) -> pa.Array:
        """Returns `text`, each cell as `same_spelling` writes it."""
        cells = self.text(name).dictionary_encode()
        words = [same_spelling(cell) for cell in cells.dictionary.to_pylist()]
        return pa.array(words, pa.large_string()).take(cells.indices)

    def _parquet(self) -> pa.Table:
        with parquet.ParquetFile(self.path) as file:
            return file.read()


def _read_csv(path: Path) -> pa.Table:
    """Reads all columns as text: labels such as 01 would lose their zero as numbers."""
    with open(path, "rb") as file:
        marks = sum(part.count(b'"') for part in iter(lambda: file.read(2**24), b""))
    if marks % 2:  # else one cell would silently swallow all rows that follow it
        raise ValueError("a quotation mark is not closed, since their number is odd")
    parsing = csv.ParseOptions(newlines_in_values=True)
    with csv.open_csv(path, parse_options=parsing) as reader:
        names = reader.schema.names
    return csv.read_csv(
        path,
        parse_options=parsing,
        convert_options=csv.ConvertOptions(
            column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=False
        ),
    )


def same_spelling(word: str) -> str:
    """Writes a word in one way: without spaces around it, accents joined to letters."""
    return unicodedata.normalize("NFC", word.strip())


def quoted(names: Iterable[str]) -> str:
    """Lists names for a message in quotes: the first few, and how many more."""
    return some_of([repr(name) for name in names])
