"""Text tables keyed by ids, checked against each other; every error has a file and a line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from icd.errors import DataError


@dataclass(frozen=True, eq=False)
class Table:
    """One text file: R rows of numbers, a last column of words in some, and the line of each row."""

    path: Path
    columns: tuple[str, ...]
    lines: np.ndarray  # (R,)
    values: np.ndarray  # (R, number of numeric columns) float64
    words: tuple[str, ...]  # the last column, if it is a path or a name

    @classmethod
    def read(cls, path: Path, columns: tuple[str, ...], words: bool = False) -> Table:
        """Read a file whose columns are separated by white space; `words` if the last one is text.

        A column whose name ends in "id" holds whole numbers. Blank lines, Windows line ends and a byte order
        mark are ignored.

        Raises:
            DataError: a file that is missing, empty or not UTF-8, or a row that does not fit, with its line.
        """
        lines: list[int] = []
        values: list[float] = []
        last: list[str] = []
        # Not splitlines(): it splits at more characters than editors do, and line numbers would drift.
        for line, row in enumerate(_text(path).split("\n"), 1):
            fields = row.split()
            if not fields:
                continue
            if len(fields) != len(columns):
                expected = f"{len(columns)} ({', '.join(columns)})"
                raise DataError(f"{path}:{line}: {len(fields)} fields, expected {expected}")
            lines.append(line)
            if words:
                last.append(fields.pop())
            try:
                values.extend(map(float, fields))
            except ValueError:
                column, field = columns[len(values) % len(fields)], fields[len(values) % len(fields)]
                raise DataError(f"{path}:{line}: the {column} is {field!r}, not a number") from None
        numbers = np.array(values).reshape(len(lines), -1)
        table = cls(path, columns, np.array(lines), numbers, tuple(last))
        for index, column in enumerate(columns):
            if column.endswith("id"):
                ids = numbers[:, index]
                whole = np.isfinite(ids) & (np.floor(ids) == ids)
                table.require(whole, f"the {column} is {{{column}}}, not a whole number")
        return table

    def error(self, row: int, text: str) -> DataError:
        """Return an error at the line of `row`; `{column}` in the text is that row's field."""
        fields = [f"{value:.12g}" for value in self.values[row]] + list(self.words[row : row + 1])
        named = dict(zip(self.columns, fields, strict=True))
        return DataError(f"{self.path}:{self.lines[row]}: {text.format(**named)}")

    def require(self, good: np.ndarray | np.bool_, text: str) -> None:
        """Raise for the first row that is not good."""
        if not np.all(good):
            raise self.error(int(np.argmin(good)), text)

    def unique(self, keys: Sequence[object], text: str) -> None:
        """Raise for the first row whose key is on an earlier line."""
        first: dict[object, int] = {}
        for row in np.argsort(self.lines).tolist():
            earlier = first.setdefault(keys[row], row)
            if earlier != row:
                raise self.error(row, f"{text} is already on line {self.lines[earlier]}")

    def by_id(self) -> Table:
        """Return the rows by ascending id; raise if an id occurs twice."""
        self.unique(self.values[:, 0].tolist(), f"{self.columns[0]} {{{self.columns[0]}}}")
        order = np.argsort(self.values[:, 0])
        words = tuple(self.words[row] for row in order)
        return replace(self, lines=self.lines[order], values=self.values[order], words=words)

    def found_in(self, known: Table) -> np.ndarray:
        """Return the row of `known`, which is sorted by id, for each row's id, (R,)."""
        column = known.columns[0]
        ids, wanted = known.values[:, 0], self.values[:, self.columns.index(column)]
        rows = np.minimum(np.searchsorted(ids, wanted), len(ids) - 1)
        self.require(ids[rows] == wanted, f"{column} {{{column}}} is not in {known.path.name}")
        return rows

    def positions(self, images: Table) -> np.ndarray:
        """Return the image of each row, (R,); raise unless every image has exactly one row."""
        where = self.found_in(images)
        count = np.bincount(where, minlength=len(images.words))
        if count.max() > 1:
            self.unique(where.tolist(), "image id {image id}")
        if count.min() == 0:
            raise images.error(int(np.argmin(count)), f"image id {{image id}} has no row in {self.path.name}")
        return where


def _text(path: Path) -> str:
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise DataError(f"{path}: this table is missing") from None
    except UnicodeDecodeError as error:
        line, byte = error.object.count(b"\n", 0, error.start) + 1, error.object[error.start]
        raise DataError(f"{path}:{line}: byte 0x{byte:02x} is not UTF-8 text") from None
    except OSError as error:
        raise DataError(f"{path}: this table cannot be read ({error.strerror})") from error
    if not text.strip():
        raise DataError(f"{path}: this table is empty")
    return text
