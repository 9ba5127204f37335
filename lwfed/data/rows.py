"""The examples of a table: rows with one id are one example, and each cell is checked by what it is for.

Without a column of ids, the id of a row is the path of its image, or else of its sound. Rows with one id must agree in
all columns that the spec names, but for their text.
"""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lwfed.data.folders import inside
from lwfed.data.left_out import BLANK, NO_LABEL, NOTHING_ROWS, REPEATED_CAPTIONS, REPEATED_ROWS
from lwfed.data.tables import Row, Table, as_text, shown
from lwfed.types.errors import DataError

FILES = ("image", "audio")
"""Modalities whose cells are paths."""
MODALITIES = ("audio", "image", "text")
SPLITS = ("train", "validation", "test")


@dataclass
class Item:
    """The rows of one example.

    Attributes:
        number: Its first row.
        values: Key of `data.columns` -> its value, which all its rows share.
        fields: Further column -> its value, if all rows share it.
        captions: The texts of its rows.
    """

    number: int
    values: dict[str, str]
    fields: dict[str, str]
    captions: list[str]


def items_of(table: Table, columns: Mapping[str, str], counts: Counter[str], *, skip: bool) -> dict[str, Item]:
    """Returns the examples by id, and counts what is left out.

    Raises:
        DataError: A cell is wrong, or rows with one id differ.
    """
    items: dict[str, Item] = {}
    for number, row in table.rows:
        values = {key: value for key in columns if key != "text" if (value := _value(table, number, row, key, columns))}
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
        name = values.get("id") or next((values[key] for key in FILES if key in values), f"row {number}")
        item = items.setdefault(name, Item(number, values, fields, []))
        if item.number != number:
            _refuse_other(table, columns, name, item, number, values)
            item.fields = dict(item.fields.items() & fields.items())
        new = [text for text in dict.fromkeys(captions) if text not in item.captions]
        counts[REPEATED_CAPTIONS] += len(captions) - len(new)
        counts[REPEATED_ROWS] += item.number != number and not captions
        item.captions += new
    if not items:
        raise DataError(f"all rows of {table.path} are left out", remedy="fix it, or set data.on_bad_example=fail")
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
    return _path(text, where) if key in FILES else text


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
        return NOTHING_ROWS, "has no image, text or sound", "fill or remove it"
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
                f"{table.path}: rows {item.number} and {number} have one id, {shown(name)}, and differ in "
                f"`{columns[key]}`: {shown(first)} and {shown(second)}",
                remedy=f"{ids}, or write the same values in all but the text",
            )
