"""Tables in CSV, JSON lines and Parquet, read into one form: numbered rows of non-empty cells; errors name the row.

A row has the number that an editor shows: in CSV the header is row 1, JSON lines count lines, Parquet counts from 1.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np

from lwfed.catalog.sources.table import FORMATS
from lwfed.data.parquet import read_columns
from lwfed.data.texts import decoded_text, is_unicode, unique_keys
from lwfed.types.errors import DataError

Row = dict[str, Any]
"""Column -> cell: text without blanks around it, a number, true or false, a list, numbers as an array, or whatever else
a format has."""
_DELIMITERS = {",": "a comma", ";": "a semicolon", "\t": "a tab", "|": "a bar"}


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        title: Its name for people: the path of its file, or its URI.
        columns: Names of its columns, in order.
        rows: Number of the row, and its non-empty cells.
        empty: Number of rows without any cell, which `rows` leaves out.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[int, Row], ...]
    empty: int

    def place(self, number: int) -> str:
        """Returns where a row stands, for errors."""
        return f"{self.title}: row {number}"


def read_table(path: Path, *, title: str | None = None, delimiter: str | None = None) -> Table:
    """Reads a table.

    Args:
        path: A file with one of the endings in `FORMATS`.
        title: Its name in errors; None: its path.
        delimiter: The character between a CSV's cells; None: that of its ending.

    Raises:
        DataError: It is no table of that format, or a row of it is wrong.
        OSError: It cannot be read.
    """
    ending, title = path.suffix.lower(), title or str(path)
    numbered: Iterable[tuple[int, Row]]
    if ending == ".parquet":
        columns, numbered = _parquet(path, title)
    elif ending == ".jsonl":
        columns, numbered = [], _json_lines(title, _text(path, title))
    else:
        columns, numbered = _csv(title, _text(path, title), delimiter or FORMATS[ending] or ",")
    known, rows, empty = dict.fromkeys(columns), [], 0
    for number, values in numbered:
        row = {name: cell for name, value in values.items() if (cell := _cell(title, number, name, value)) is not None}
        known |= dict.fromkeys(values)
        empty += not row
        if row:
            rows.append((number, row))
    if not rows:
        raise DataError(f"{title} has no rows", remedy="write a row per example")
    return Table(title=title, columns=tuple(known), rows=tuple(rows), empty=empty)


def _cell(title: str, number: int, name: str, value: Any) -> Any:
    """Returns a cell's value; None if it is empty. Raises DataError if it is no Unicode text."""
    if isinstance(value, float) and math.isnan(value):  # how pandas writes an empty cell
        return None
    if isinstance(value, list | np.ndarray) and not len(value):
        return None
    for text in value if isinstance(value, list) else (value,):
        if isinstance(text, str) and not is_unicode(text):
            problem = f"{title}: row {number}: `{name}` has half of a surrogate pair, {json.dumps(text)[:60]}"
            raise DataError(problem, remedy="write the text again: it stands for no character")
    return (value.strip() or None) if isinstance(value, str) else value


def _text(path: Path, title: str) -> str:
    try:
        return decoded_text(path.read_bytes(), empty="write a row per example")
    except DataError as error:
        raise DataError(f"{title} {error.problem}", remedy=error.remedy) from None


def _csv(title: str, text: str, delimiter: str) -> tuple[list[str], Iterator[tuple[int, Row]]]:
    """Returns the header of a CSV and its rows. Raises DataError if the header is wrong."""
    records = _records(title, text, delimiter)
    header = [name.strip() for name in next(records, [])]
    others = [other for other in _DELIMITERS if other != delimiter and other in "".join(header)]
    if len(header) == 1 and others:
        words = _DELIMITERS.get(delimiter, repr(delimiter))
        raise DataError(
            f"{title}: the header has no {words.removeprefix('a ')}, but {_DELIMITERS[others[0]]}: {header[0][:60]!r}",
            remedy=f"set data.delimiter to {json.dumps(others[0])}",
        )
    _refuse_header(title, header)
    return header, _rows(title, header, records)


def _records(title: str, text: str, delimiter: str) -> Iterator[list[str]]:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    while True:
        before = reader.line_num + 1
        try:
            yield next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise DataError(
                f"{title} is not CSV: from line {before} on: {error}",
                remedy='close each quoted cell, and write a quote in it as ""',
            ) from None


def _rows(title: str, header: Sequence[str], records: Iterator[list[str]]) -> Iterator[tuple[int, Row]]:
    for number, cells in enumerate(records, start=2):
        if cells and len(cells) != len(header):
            raise DataError(
                f"{title}: row {number} has {len(cells)} cells and the header {len(header)}: {', '.join(cells)[:60]!r}",
                remedy="quote cells that have the delimiter in them, or add the missing ones",
            )
        yield number, dict(zip(header, cells, strict=False))


def _refuse_header(title: str, header: Sequence[str]) -> None:
    blank = [n for n, name in enumerate(header, start=1) if not name]
    if blank:
        raise DataError(f"{title}: column {blank[0]} of {len(header)} has no name", remedy="name it, or remove it")
    twice = [name for name in header if header.count(name) > 1]
    if twice:
        raise DataError(f"{title} has the column {twice[0]} twice", remedy="rename or remove one of them")


def _json_lines(title: str, text: str) -> Iterator[tuple[int, Row]]:
    lines = text.removesuffix("\n").split("\n")
    if text.lstrip().startswith("["):
        raise DataError(f"{title} is a JSON list, not JSON lines", remedy="write one object per line, without a list")
    for number, line in enumerate(lines, start=1):
        place = f"{title}: row {number}"
        try:
            values = json.loads(line, object_pairs_hook=unique_keys) if line.strip() else {}
        except KeyError as error:
            raise DataError(f"{place} has the key {error} twice", remedy="remove one of them") from None
        except RecursionError:
            raise DataError(f"{place} is nested too deeply", remedy="write one flat object per line") from None
        except ValueError as error:
            raise DataError(f"{place} is not JSON: {error}", remedy="write one object per line") from None
        if not isinstance(values, dict):
            raise DataError(f"{place} is no object: {line[:60]!r}", remedy='write {"image": "a.png", ...}')
        if not all(name.strip() and is_unicode(name) for name in values):
            raise DataError(f"{place} has a key that is blank or no text", remedy="name or remove it")
        yield number, values


def _parquet(path: Path, title: str) -> tuple[list[str], Iterable[tuple[int, Row]]]:
    try:
        columns = read_columns(path)
    except DataError as error:
        raise DataError(f"{title} {error.problem}", remedy=error.remedy) from None
    header = [name for name, _ in columns]
    _refuse_header(title, header)
    rows = zip(*(cells for _, cells in columns), strict=True)
    return header, enumerate((dict(zip(header, cells, strict=True)) for cells in rows), start=1)


def as_text(value: Any) -> str | None:
    """Returns a cell as text; None if it is not a text, a number, a date, true or false."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():  # how pandas writes integers beside an empty cell
        return str(int(value))
    return str(value) if isinstance(value, str | int | float | Decimal | date) else None


def shown(value: Any) -> str:
    """Returns a cell for a message."""
    if value is None:
        return "an empty cell"
    return repr(value if len(repr(value)) <= 60 else repr(value)[:60])
