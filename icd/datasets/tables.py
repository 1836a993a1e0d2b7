"""Text tables keyed by ids, checked against each other; every fault has a file and a line."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from icd.errors import DataError


@dataclass(frozen=True, eq=False)
class Table:
    """One text file: R rows of numbers, a last column of words in some, and the line of each row."""

    path: Path
    columns: tuple[str, ...]
    lines: np.ndarray  # (R,)
    values: np.ndarray  # (R, number of columns that hold numbers) float64
    words: tuple[str, ...]  # the last column, where it is a path or a name

    @classmethod
    def read(
        cls, path: Path, columns: tuple[str, ...], words: Literal["none", "one", "many"] = "none"
    ) -> Table:
        """Read a file whose columns are split by white space; `words` says what the last one holds.

        A column whose name ends in "id" holds whole numbers. Blank lines, Windows line ends and a
        byte order mark are skipped.
        """
        text = _text(path)
        table = _quickly(path, columns, text) if words == "none" else None
        table = table or _carefully(path, columns, text, words)
        for index, column in enumerate(columns):
            if column.endswith("id"):
                ids = table.values[:, index]
                whole = np.isfinite(ids) & (np.floor(ids) == ids)
                table.require(whole, f"the {column} is {{{column}}}, not a whole number")
        return table

    def error(self, row: int, text: str) -> DataError:
        """A `DataError` at the line of `row`; `{column}` in the text is that row's field."""
        fields = [f"{value:.12g}" for value in self.values[row]] + list(self.words[row : row + 1])
        named = dict(zip(self.columns, fields, strict=True))
        return DataError(f"{self.path}:{self.lines[row]}: {text.format(**named)}")

    def require(self, good: np.ndarray | np.bool_, text: str) -> None:
        """Raise for the first row that is not good."""
        if not np.all(good):
            raise self.error(int(np.argmin(good)), text)

    def unique(self, keys: Sequence[object], text: str) -> None:
        """Raise for the first row whose key an earlier line already has."""
        first: dict[object, int] = {}
        for row in np.argsort(self.lines).tolist():
            earlier = first.setdefault(keys[row], row)
            if earlier != row:
                raise self.error(row, f"{text} is already on line {self.lines[earlier]}")

    def by_id(self) -> Table:
        """The same rows by ascending id, each id once."""
        self.unique(self.values[:, 0].tolist(), f"{self.columns[0]} {{{self.columns[0]}}}")
        order = np.argsort(self.values[:, 0])
        words = tuple(self.words[row] for row in order)
        return replace(self, lines=self.lines[order], values=self.values[order], words=words)

    def found_in(self, known: Table) -> np.ndarray:
        """(R,) the row of `known`, which is sorted by id, that each row's id names."""
        column = known.columns[0]
        ids, wanted = known.values[:, 0], self.values[:, self.columns.index(column)]
        rows = np.minimum(np.searchsorted(ids, wanted), len(ids) - 1)
        self.require(ids[rows] == wanted, f"{column} {{{column}}} is not in {known.path.name}")
        return rows

    def positions(self, images: Table, parts: Table | None = None) -> np.ndarray:
        """(R,) where each row belongs, by image and then by part: every one of them exactly once."""
        where, each = self.found_in(images), 1
        text = "image id {image id}"
        if parts is not None:
            each = len(parts.words)
            where = where * each + self.found_in(parts)
            text += ", part id {part id}"
        count = np.bincount(where, minlength=len(images.words) * each)
        if count.max() > 1:
            self.unique(where.tolist(), text)
        if count.min() == 0:
            image, part = divmod(int(np.argmin(count)), each)
            of_part = f" for part id {parts.values[part, 0]:.0f}" if parts is not None else ""
            raise images.error(image, f"image id {{image id}} has no row{of_part} in {self.path.name}")
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


def _quickly(path: Path, columns: tuple[str, ...], text: str) -> Table | None:
    """A table of numbers with a row on every line, or None: three times as quick."""
    try:
        values = np.loadtxt(io.StringIO(text), comments=None, ndmin=2)
    except ValueError:
        return None
    if values.shape != (text.rstrip().count("\n") + 1, len(columns)):
        return None
    return Table(path, columns, np.arange(1, len(values) + 1), values, ())


def _carefully(path: Path, columns: tuple[str, ...], text: str, words: str) -> Table:
    """Any table, or the file and line of what is wrong with it."""
    lines: list[int] = []
    values: list[float] = []
    last: list[str] = []
    # Not splitlines(): it knows more line ends than editors do, and the numbers would drift.
    for line, row in enumerate(text.split("\n"), 1):
        fields = row.strip().split(maxsplit=len(columns) - 1 if words == "many" else -1)
        if not fields:
            continue
        if len(fields) != len(columns):
            expected = f"{len(columns)} ({', '.join(columns)})"
            raise DataError(f"{path}:{line}: {len(fields)} fields, expected {expected}")
        lines.append(line)
        if words != "none":
            last.append(fields.pop())
        try:
            values.extend(map(float, fields))
        except ValueError:
            column, field = columns[len(values) % len(fields)], fields[len(values) % len(fields)]
            raise DataError(f"{path}:{line}: the {column} is {field!r}, not a number") from None
    return Table(path, columns, np.array(lines), np.array(values).reshape(len(lines), -1), tuple(last))
