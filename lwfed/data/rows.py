"""The examples of a table: rows with one id are one example, and each cell is checked by what it is for.

Without a column of ids, the id of a row is the path of its image, or else of its sound or of a signal. Rows with one id
must agree in all columns that the spec names, but for their text. A signal may lie in the cell itself; its name is then
that of its numbers.
"""

from __future__ import annotations

import difflib
import hashlib
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np
import numpy.typing as npt

from lwfed.catalog.sources.table import SERIES_FORMATS
from lwfed.data.folders import inside
from lwfed.data.left_out import BLANK, NO_LABEL, NOTHING_ROWS, REPEATED_CAPTIONS, REPEATED_ROWS
from lwfed.data.protocol import Signal
from lwfed.data.signals import as_signal
from lwfed.data.tables import Row, Table, as_text, shown
from lwfed.types.errors import DataError
from lwfed.types.modalities import of_kind

SERIES = of_kind("series")
"""Modalities whose cells are paths or the signals themselves."""
FILES = ("image", "audio", *SERIES)
"""Modalities whose cells are paths."""
MODALITIES = tuple(sorted((*FILES, "text")))
SPLITS = ("train", "validation", "test")


@dataclass
class Item:
    """The rows of one example.

    Attributes:
        number: Its first row.
        values: Key of `data.columns` -> its value, which all its rows share.
        signals: Sensor -> its signal [T, C], if that lies in the table; its value is then a name of the numbers.
        fields: Further column -> its value, if all rows share it.
        captions: The texts of its rows.
    """

    number: int
    values: dict[str, str]
    signals: dict[str, Signal]
    fields: dict[str, str]
    captions: list[str]

    @property
    def files(self) -> dict[str, str]:
        """Modality -> path of its file, in the order of `FILES`."""
        return {key: self.values[key] for key in FILES if key in self.values and key not in self.signals}


def items_of(table: Table, columns: Mapping[str, str], counts: Counter[str], *, skip: bool) -> dict[str, Item]:
    """Returns the examples by id, and counts what is left out.

    Raises:
        DataError: A cell is wrong, or rows with one id differ.
    """
    items: dict[str, Item] = {}
    for number, row in table.rows:
        signals = _signals(table, number, row, columns)
        values = {key: name_of(signal) for key, signal in signals.items()}
        others = [key for key in columns if key != "text" and key not in signals]
        values |= {key: value for key in others if (value := _value(table, number, row, key, columns))}
        captions = _captions(table, number, row, columns.get("text"), counts)
        fault = _fault(values, captions, columns)
        if fault is not None:
            reason, problem, remedy = fault
            if not skip:
                raise DataError(f"{table.place(number)} {problem}", remedy=f"{remedy}, or set data.on_bad_example=skip")
            counts[reason] += 1
            continue
        further = {name: as_text(cell) for name, cell in row.items() if name not in columns.values()}
        fields = {name: text for name, text in further.items() if text is not None}
        item = Item(number, values, signals, fields, [])
        name = values.get("id") or next(iter(item.files.values()), f"row {number}")
        item = items.setdefault(name, item)
        if item.number != number:
            _refuse_other(table, columns, name, item, number, values)
            item.fields = dict(item.fields.items() & fields.items())
        new = [text for text in dict.fromkeys(captions) if text not in item.captions]
        counts[REPEATED_CAPTIONS] += len(captions) - len(new)
        counts[REPEATED_ROWS] += item.number != number and not captions
        item.captions += new
    if not items:
        raise DataError(f"all rows of {table.title} are left out", remedy="fix it, or set data.on_bad_example=fail")
    return items


def _value(table: Table, number: int, row: Row, key: str, columns: Mapping[str, str]) -> str | None:
    """Returns a cell as text, checked by what it is for; None if it is empty."""
    name = columns[key]
    if name not in row:
        if key in ("id", "split"):
            raise DataError(
                f"{table.place(number)} has no {key} in `{name}`",
                remedy=f"write one in each row, or set data.columns.{key}=null",
            )
        return None
    cell, where = row[name], f"{table.place(number)}: `{name}`"
    text = cell if isinstance(cell, str) else None if key in FILES else as_text(cell)
    if text is None or (key == "label" and isinstance(cell, float) and not cell.is_integer()):
        wanted = "a path" if key in FILES else "a word or an integer" if key == "label" else "a text or a number"
        raise DataError(f"{where} is {shown(cell)}, not {wanted}", remedy="write one, or leave the cell empty")
    if key == "split" and text not in SPLITS:
        near = difflib.get_close_matches(text.lower(), SPLITS, n=1, cutoff=0.4)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise DataError(f"{where} is {shown(text)}{hint}", remedy=f"write one of: {', '.join(SPLITS)}")
    if key not in FILES:
        return text
    path = _path(text, where)
    if key in SERIES and PurePosixPath(path).suffix.lower() not in SERIES_FORMATS:
        raise DataError(
            f"{where} is {shown(text)}, which ends with none of {', '.join(SERIES_FORMATS)}",
            remedy=f"save the signal as one of these, or leave the column out: data.columns.{key}=null",
        )
    return path


def _signals(table: Table, number: int, row: Row, columns: Mapping[str, str]) -> dict[str, Signal]:
    """Returns the signals that lie in a row's cells, by sensor. Raises DataError if one has something else in it."""
    found = {}
    for key in SERIES:
        cell = row.get(columns[key]) if key in columns else None
        if not isinstance(cell, list | np.ndarray):
            continue
        try:
            found[key] = as_signal(np.asarray(cell))
        except ValueError as error:  # ragged, or `as_signal`'s own
            told = f" {error.problem}" if isinstance(error, DataError) else f" is ragged: {shown(cell)}"
            raise DataError(
                f"{table.place(number)}: `{columns[key]}`{told}",
                remedy="write a list of numbers for each time step, all of the same length",
            ) from None
    return found


def name_of(signal: npt.NDArray[np.generic]) -> str:
    """Returns a name of a signal's numbers, the same for equal ones whatever their type."""
    content = np.ascontiguousarray(signal, dtype="<f8")
    return f"{len(signal)} x {signal.shape[1]} numbers, sha256 {hashlib.sha256(content.data).hexdigest()}"


def _path(text: str, where: str) -> str:
    """Returns a path below the root. Raises DataError if it is none."""
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", text):
        raise DataError(f"{where} is the URI {shown(text)}", remedy="download the file, and write its path")
    short = inside(text)
    if short is None or ".." in text.split("/") or re.match(r"[A-Za-z]:[\\/]", text):
        raise DataError(f"{where}, {shown(text)}, is no path below data.root", remedy="write it relative to data.root")
    return short


def _captions(table: Table, number: int, row: Row, name: str | None, counts: Counter[str]) -> list[str]:
    """Returns the texts of a row, spaces joined."""
    cell = row.get(name) if name else None
    texts = cell if isinstance(cell, list) else [] if cell is None else [cell]
    wrong = [text for text in texts if not isinstance(text, str)]
    if wrong:
        problem = f"{table.place(number)}: `{name}` has {shown(wrong[0])}, not a text"
        raise DataError(problem, remedy="write a text, or a list of texts")
    joined = [" ".join(text.split()) for text in texts]
    counts[BLANK] += joined.count("")
    return [text for text in joined if text]


def _fault(
    values: Mapping[str, str], captions: Sequence[str], columns: Mapping[str, str]
) -> tuple[str, str, str] | None:
    """Returns why a row is no example: what it counts as, the problem and the remedy; None if it is one."""
    if not captions and not any(key in values for key in FILES):
        return NOTHING_ROWS, "has no image, text, sound or series", "fill or remove it"
    if "label" in columns and "label" not in values:
        return NO_LABEL, f"has no label in `{columns['label']}`", "write one, set data.columns.label=null"
    return None


def _refuse_other(
    table: Table, columns: Mapping[str, str], name: str, item: Item, number: int, values: Mapping[str, str]
) -> None:
    """Raises DataError if a row differs from the first one of its id in more than the text."""
    for key in sorted(item.values.keys() | values.keys()):
        first, second = item.values.get(key), values.get(key)
        if first != second:
            ids = "give them different ids" if "id" in columns else "their file is their id: add a column `id`"
            raise DataError(
                f"{table.title}: rows {item.number} and {number} have one id, {shown(name)}, and differ in "
                f"`{columns[key]}`: {shown(first)} and {shown(second)}",
                remedy=f"{ids}, or write the same values in all but the text",
            )
