"""People's own data: a table whose rows name files and have texts, labels, sites and splits, and perhaps signals."""

from __future__ import annotations

import difflib
import posixpath
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from PIL import Image

from lwfed.catalog.sources.table import FORMATS, Columns
from lwfed.data.files import read_image, read_series, read_sound
from lwfed.data.folders import DiskFolder, Folder, alike_among, data_root, listing_digest, of_split
from lwfed.data.left_out import EMPTY_ROWS, UNNAMED, of_names
from lwfed.data.protocol import Example, Signal, Waveform
from lwfed.data.remote import RemoteFolder
from lwfed.data.rows import FILES, MODALITIES, SPLITS, Item, items_of
from lwfed.data.tables import Table, read_table, shown
from lwfed.spec.data import DataSpec
from lwfed.types.canonical import digest_of
from lwfed.types.errors import DataError, SpecError
from lwfed.types.seeds import derive

_INTEGER = re.compile(r"-?\d{1,18}")


@dataclass(frozen=True)
class Rows:
    """A table's examples.

    Attributes:
        folder: The folder of the table and of its files.
        table: The table's path below it.
        files: Example id -> paths of its files.
        signals: Example id -> sensor -> its signal, if that lies in the table.
        counts: What is left out of the table -> how many.
        digest: Digest of all that the table says.
    """

    folder: DiskFolder | RemoteFolder
    table: str
    classes: tuple[str, ...]
    files: Mapping[str, tuple[str, ...]] = field(repr=False)
    signals: Mapping[str, Mapping[str, Signal]] = field(repr=False)
    splits: Mapping[str, tuple[Example, ...]] = field(repr=False)
    counts: Mapping[str, int]
    digest: str

    @property
    def root(self) -> Path | RemoteFolder:
        """The folder of its files."""
        return self.folder.place if isinstance(self.folder, DiskFolder) else self.folder

    def examples(self, split: str) -> tuple[Example, ...]:
        """Returns the examples of `train`, `validation` or `test`, by id."""
        return of_split(split, **self.splits)

    def version(self) -> str:
        """Returns the digest of all that the table says."""
        return self.digest

    def left_out(self) -> Mapping[str, int]:
        """Counts rows, captions and files that are part of no example."""
        used = {self.table, *(path for paths in self.files.values() for path in paths)}
        endings = {PurePosixPath(path).suffix.lower() for path in used - {self.table}}
        return Counter(self.counts) + of_names(self.folder.names(), used=used, endings=endings, otherwise=UNNAMED)

    def image(self, example: Example) -> Image.Image:
        """Reads the image."""
        path = self._path(example, "image")
        return read_image(self.folder.file(path), title=self.folder.title(path))

    def waveform(self, example: Example) -> tuple[Waveform, int]:
        """Reads the sound."""
        path = self._path(example, "audio")
        return read_sound(self.folder.file(path), title=self.folder.title(path))

    def series(self, example: Example, modality: str) -> Signal:
        """Reads the signal."""
        signal = self.signals.get(example.id, {}).get(modality)
        if signal is not None:
            return signal
        try:
            path = self._path(example, modality)
            return read_series(self.folder.file(path), title=self.folder.title(path))
        except DataError as error:
            raise DataError(f"{example.place}: {error.problem}", remedy=error.remedy) from None

    def _path(self, example: Example, modality: str) -> str:
        if modality not in example.items:
            raise DataError(f"{example.id} has no {modality}", remedy="name one in its row")
        return example.items[modality]


def open_data(data: DataSpec) -> Rows:
    """Opens a table in a folder; see `open_folder`. Raises DataError, too, if there is no such folder."""
    return open_folder(data, DiskFolder(data_root(data)))


def open_folder(data: DataSpec, folder: DiskFolder | RemoteFolder) -> Rows:
    """Opens a table.

    Args:
        data: Its `table`, `columns`, `delimiter` and `classes` say how to read it.
            With `on_bad_example: skip`, files may be missing: `check_examples` then reports and counts them; and rows
            without a label, or without image, text, sound and series, are left out and counted.

        folder: The folder of the table and of its files.

    Raises:
        DataError: The table is missing or wrong, or names a missing file; the message has the row.
        SpecError: Validation examples are asked for twice.
        UnreachableError, DiskFullError: It lies in a bucket and cannot be fetched.
    """
    skip, path = data.on_bad_example == "skip", _table_in(folder, data.own["table"])
    table = read_table(folder.file(path), title=folder.title(path), delimiter=data.own["delimiter"])
    columns = _columns(table, data.own["columns"])
    counts = Counter({EMPTY_ROWS: table.empty})
    items = items_of(table, columns, counts, skip=skip)
    if not skip:
        _refuse_missing(folder, table, columns, items)
    classes = _classes(table, columns, items, given=data.own["classes"])
    split_of = _splits(table, columns, items, fraction=data.own["test_fraction"])
    if data.validation_fraction and "validation" in split_of.values():
        raise SpecError(
            f"{table.title} has rows for validation, and `data.validation_fraction` asks for more",
            remedy="set data.validation_fraction=0, or leave out the column with data.columns.split=null",
        )
    splits: dict[str, list[Example]] = {split: [] for split in SPLITS}
    entries, labels = [], {label: n for n, label in enumerate(classes)}
    for name, item in sorted(items.items()):
        example = _example(name, item, labels, place=table.place(item.number))
        splits[split_of[name]].append(example)
        said = {"values": item.values, "fields": item.fields, "captions": item.captions, "label": example.label}
        entries.append((f"{split_of[name]}:{name}", digest_of(said)))
    return Rows(
        folder=folder,
        table=path,
        classes=classes,
        files={name: tuple(item.files.values()) for name, item in items.items()},
        signals={name: item.signals for name, item in items.items() if item.signals},
        splits={split: tuple(examples) for split, examples in splits.items()},
        counts=+counts,
        digest=listing_digest("table", entries=[*entries, ("classes", digest_of(list(classes)))]),
    )


def _table_in(folder: Folder, name: str | None) -> str:
    """Returns the table's path. Raises DataError if there is none, or several and none is named."""
    if name is not None:
        path = posixpath.normpath(name)
        if not folder.has(path):
            there = alike_among(folder.beside(path), PurePosixPath(path).name)
            raise DataError(f"there is no table {folder.title(path)}{there}", remedy="set data.table to its name")
        return path
    found = [path for ending in FORMATS if folder.has(path := f"table{ending}")]
    if len(found) == 1:
        return found[0]
    if found:
        raise DataError(
            f"{folder.title()} has {' and '.join(found)}", remedy=f"set data.table to one of them, such as {found[0]}"
        )
    others = [other for other in folder.beside("table") if PurePosixPath(other).suffix.lower() in FORMATS]
    there = f"; it has {', '.join(others[:5])}" if others else ""
    raise DataError(
        f"{folder.title()} has no table{', no table'.join(FORMATS)}{there}",
        remedy="set data.table to the name of the table",
    )


def _columns(table: Table, columns: Columns) -> dict[str, str]:
    """Returns key -> column, for those that the table has.

    Raises:
        DataError: A column that the spec names is missing, or none has an image, a text, a sound or a signal.
    """
    there = ", ".join(table.columns[:20]) + (" ..." if len(table.columns) > 20 else "")
    for key, name in columns.named.items():
        if name not in table.columns:
            folded = {other.casefold(): other for other in reversed(table.columns)}
            near = difflib.get_close_matches(name.casefold(), folded, n=1, cutoff=0.5)
            hint = f"; did you mean {folded[near[0]]}?" if near else ""
            raise DataError(
                f"{table.title} has no column {name} for data.columns.{key}{hint}", remedy=f"name one of: {there}"
            )
    known = {key: name for key, name in columns if name in table.columns}
    if not known.keys() & set(MODALITIES):
        wanted = ", ".join(name for key, name in columns if key in MODALITIES and name)
        raise DataError(
            f"{table.title} has none of the columns {wanted}; it has: {there}",
            remedy=f"name them in the spec, such as data.columns.image={table.columns[0]}",
        )
    return known


def _refuse_missing(folder: Folder, table: Table, columns: Mapping[str, str], items: Mapping[str, Item]) -> None:
    """Raises DataError with the first row whose file is missing, and how many are."""
    first = reversed([*items.values()])
    named = {path: (key, item.number) for item in first for key, path in item.files.items()}
    missing = [path for path in named if not folder.has(path)]
    if missing:
        path = min(missing, key=lambda path: named[path][1])
        key, number = named[path]
        more = f" ({len(missing)} of {len(named)} files are missing)" if len(missing) > 1 else ""
        windows = "; write / in place of \\" if "\\" in path else ""
        there = alike_among(folder.beside(path), PurePosixPath(path).name)
        file = folder.title(path)
        raise DataError(
            f"{table.place(number)}: the file {file} of `{columns[key]}` is missing{there}{windows}{more}",
            remedy="restore it, fix the path, or set data.on_bad_example=skip",
        )


def _classes(
    table: Table, columns: Mapping[str, str], items: Mapping[str, Item], *, given: tuple[str, ...] | None
) -> tuple[str, ...]:
    """Returns the classes: the given ones, or those of the rows, integers by value and words by letters.

    Raises:
        DataError: A row has another class than the given ones.
    """
    found = {item.values["label"]: item.number for item in reversed([*items.values()]) if "label" in item.values}
    if given is not None:
        strange = sorted((number, name) for name, number in found.items() if name not in given)
        if strange:
            number, name = strange[0]
            near = difflib.get_close_matches(name, given, n=1, cutoff=0.5)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise DataError(
                f"{table.place(number)}: `{columns['label']}` is {shown(name)}, which is not in data.classes{hint}",
                remedy="add it there, or fix the row",
            )
        return given if found else ()
    if all(_INTEGER.fullmatch(name) for name in found):
        return tuple(sorted(found, key=lambda name: (int(name), name)))
    return tuple(sorted(found))


def _splits(table: Table, columns: Mapping[str, str], items: Mapping[str, Item], *, fraction: float) -> dict[str, str]:
    """Returns id -> split: the column's, or by a hash of the file so that examples with one file stay together.

    The fraction is taken of each class, as far as it has two files; the same ones whatever the order of the rows and
    the run's seed.
    """
    if "split" in columns:
        return {name: item.values["split"] for name, item in items.items()}
    labels: dict[str, str] = {}
    key_of = {name: next((item.values[k] for k in FILES if k in item.values), name) for name, item in items.items()}
    for name, item in sorted(items.items()):
        labels.setdefault(key_of[name], item.values.get("label", ""))
    members: dict[str, list[str]] = {}
    for key, label in labels.items():
        members.setdefault(label, []).append(key)
    chosen: set[str] = set()
    for keys in members.values():
        count = min(max(round(fraction * len(keys)), 1), len(keys) - 1)
        chosen |= set(sorted(keys, key=lambda key: derive("table", "test", key))[:count])
    return {name: "test" if key in chosen else "train" for name, key in key_of.items()}


def _example(name: str, item: Item, labels: Mapping[str, int], *, place: str) -> Example:
    values = item.values
    label = values.get("label")
    stem = next((PurePosixPath(path).stem for path in item.files.values()), name)
    own = {"stem": stem} | ({} if label is None else {"class": label}) | item.fields
    has = {*(key for key in FILES if key in values), *(["text"] if item.captions else [])}
    return Example(
        id=name,
        label=None if label is None else labels[label],
        captions=tuple(item.captions),
        fields=own | ({"site": values["site"]} if "site" in values else {}),
        lacks=tuple(modality for modality in MODALITIES if modality not in has),
        items={key: values[key] for key in FILES if key in values},
        place=place,
    )
