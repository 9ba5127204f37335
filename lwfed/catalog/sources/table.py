"""People's own data: a table with a row per example, whose cells are paths, texts and labels.

See `lwfed.data.sources.table`.
"""

from __future__ import annotations

import posixpath
from collections import Counter
from typing import Annotated, Self

from pydantic import Field, field_validator, model_validator

from lwfed.catalog.source import HeldOut, SourceDescription
from lwfed.types.modalities import of_kind
from lwfed.types.section import LATER, Section

FORMATS = {".csv": ",", ".tsv": "\t", ".jsonl": None, ".parquet": None}
"""Endings of tables -> the delimiter of those that have one."""
SERIES_FORMATS = (".npy", ".csv", ".parquet")
"""Endings of files with a signal."""
_SERIES = "path of a .npy, .csv or .parquet; in JSON lines and Parquet a list of lists of numbers, too"


class Columns(Section):
    """The columns of a table; a column with the default's name may be missing, and null leaves one out."""

    id: str | None = Field("id", description="name of the example; without it, the path of its first file")
    image: str | None = Field("image", description="path of its image, below `data.root`")
    text: str | None = Field("text", description="its caption; in JSON lines and Parquet a list of captions, too")
    audio: str | None = Field("audio", description="path of its sound, below `data.root`")
    series: Annotated[str | None, LATER] = Field("series", description=f"its signal, of any sensor: {_SERIES}")
    accelerometer: Annotated[str | None, LATER] = Field("accelerometer", description="its accelerometer's, likewise")
    gyroscope: Annotated[str | None, LATER] = Field("gyroscope", description="its gyroscope's, likewise")
    label: str | None = Field("label", description="its class, a word or an integer")
    site: str | None = Field("site", description="whose it is, for `partition: {kind: by_group, field: site}`")
    split: str | None = Field("split", description="train, validation or test; without it see `data.test_fraction`")

    @model_validator(mode="after")
    def _each_is_another_column(self) -> Self:
        given = {key: name for key, name in self if name is not None}
        blank = [key for key, name in given.items() if not name.strip()]
        if blank:
            raise ValueError(f"`data.columns.{blank[0]}` is blank: name a column, or null for none")
        twice = [name for name, count in Counter(given.values()).items() if count > 1]
        if twice:
            keys = " and ".join(f"`data.columns.{key}`" for key, name in given.items() if name == twice[0])
            raise ValueError(f"{keys} are both {twice[0]}")
        return self

    @property
    def named(self) -> dict[str, str]:
        """Key -> name of the columns whose name is not the default one, which must therefore exist."""
        return {key: name for key, name in self if name is not None and name != type(self).model_fields[key].default}


class Settings(HeldOut):
    """The keys that the source adds to the spec's `data`."""

    table: str | None = Field(
        None,
        description="table: the file below `data.root`, .csv, .tsv, .jsonl or .parquet; null: table.csv, .tsv, .jsonl "
        "or .parquet, whichever is there",
    )
    columns: Columns = Columns()
    delimiter: str | None = Field(
        None, description="table: the character between a CSV's cells; null: a comma, or in a .tsv a tab"
    )
    classes: tuple[str, ...] | None = Field(
        None, description="table: names of the classes, in the order of their numbers; null: those in it, sorted"
    )

    @field_validator("table")
    @classmethod
    def _is_below_the_root(cls, table: str | None) -> str | None:
        if table is not None:
            short = posixpath.normpath(table)
            if not table.strip() or short.startswith(("/", "..")) or "\0" in table:
                raise ValueError(f"`data.table` {table!r} is no file below `data.root`: write its path in that folder")
            if posixpath.splitext(short)[1].lower() not in FORMATS:
                raise ValueError(f"`data.table` {table!r} ends with none of {', '.join(FORMATS)}")
        return table

    @field_validator("delimiter")
    @classmethod
    def _is_a_character(cls, delimiter: str | None) -> str | None:
        if delimiter is not None and (len(delimiter) != 1 or delimiter in '"\r\n\0 ' or not delimiter.isascii()):
            raise ValueError(f"`data.delimiter` {delimiter!r}: write one ASCII character, such as ';' or \"\\t\"")
        return delimiter

    @field_validator("classes")
    @classmethod
    def _are_names(cls, classes: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if classes is not None:
            if not classes or not all(name.strip() for name in classes):
                raise ValueError("`data.classes` is empty or has a blank name: name all classes, or null")
            if len(set(classes)) < len(classes):
                raise ValueError("`data.classes` has a name twice")
        return classes


DESCRIPTION = SourceDescription(
    modalities=frozenset({"image", "text", "audio", *of_kind("series")}),
    labels=True,
    root="table.csv, .tsv, .jsonl or .parquet, and the files that it names",
    absent="name its column in data.columns, or leave it out of the spec",
    in_buckets=True,
    settings=Settings,
)
