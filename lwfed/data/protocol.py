"""The interface of data sources: they list their examples at once, and read pixels and samples on demand.

A source is the module of its name in `lwfed.data.sources`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Protocol, cast, runtime_checkable

import numpy as np
import numpy.typing as npt
from PIL import Image

from lwfed.data.remote import Progress, RemoteFolder, open_remote
from lwfed.spec.data import DataSpec
from lwfed.types.errors import DataError, LwfedError
from lwfed.types.uris import S3

Waveform = npt.NDArray[np.float32]
"""Mono samples in [-1, 1]."""
Signal = npt.NDArray[np.float32]
"""A sensor's samples [T, C], one column per axis."""


@dataclass(frozen=True, slots=True)
class Example:
    """One example, without its pixels and samples.

    Attributes:
        id: Its name in the source; unique over both splits.
        label: Index into the source's classes; None if the data have none.
        captions: Captions of the image; empty if the data have none.
        fields: Further properties, such as `stem` or `site`.
        lacks: Modalities that the example lacks, sorted.
        items: Modality -> name of its image, sound or signal, if several examples may have the same one.
        place: Where it is described, for errors, such as a table's row; may be empty.
    """

    id: str
    label: int | None
    captions: tuple[str, ...] = ()
    fields: dict[str, str] = field(default_factory=dict)
    lacks: tuple[str, ...] = ()
    items: Mapping[str, str] = field(default_factory=dict)
    place: str = field(default="", compare=False)

    def has(self, modality: str) -> bool:
        """Whether the example has a modality."""
        return modality not in self.lacks

    def item(self, *modalities: str) -> str:
        """Returns the name of the example's item in the first of the modalities that has one; else its own name."""
        return next((self.items[modality] for modality in modalities if modality in self.items), self.id)


class Source(Protocol):
    """A source of examples."""

    @property
    def root(self) -> Path | RemoteFolder | None:
        """The folder of its files; None if the data are generated."""

    @property
    def files(self) -> Mapping[str, tuple[str, ...]]:
        """Example id -> paths below the root of the files that it is read from; empty if the data are generated."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes; empty if the data have none."""

    def examples(self, split: str) -> Sequence[Example]:
        """Returns the examples of `train`, `validation` or `test`, always in the same order.

        Few sources have validation examples of their own; see `data.validation_fraction`.
        """

    def version(self) -> str:
        """Returns a digest of everything but the files' contents: names, splits, captions, settings of the drawing."""

    def left_out(self) -> Mapping[str, int]:
        """Returns what lies with the data and is part of no example -> how many; see `lwfed.data.left_out`."""

    def image(self, example: Example) -> Image.Image:
        """Reads the example's image (RGB). Raises DataError, with the file's name, if it cannot."""

    def waveform(self, example: Example) -> tuple[Waveform, int]:
        """Reads the example's sound: samples [N] and samples per second. Raises DataError, with the file's name."""

    def series(self, example: Example, modality: str) -> Signal:
        """Reads the example's signal of a sensor, such as `accelerometer`. Raises DataError, with the file's name."""


@runtime_checkable
class SourceModule(Protocol):
    """The interface of a source's module."""

    def open_data(self, data: DataSpec) -> Source:
        """Opens the data. Raises DataError, with the name of what is missing, before any work is done."""


class BucketModule(Protocol):
    """The interface of a source whose data may lie in a bucket: `SourceDescription.in_buckets`."""

    def open_folder(self, data: DataSpec, folder: RemoteFolder) -> Source:
        """Opens the data in a folder of a bucket. Raises as `open_data` does."""


def open_source(data: DataSpec, *, cache: Path | None = None, fetching: Progress | None = None) -> Source:
    """Opens the data that a spec names, and checks for missing files before any work is done.

    Args:
        data: The data section of a spec.
        cache: Folder for files fetched from a bucket; None: the machine's cache folder.
        fetching: Called with (number of files fetched from a bucket, number of files to fetch), whenever some are.

    Returns:
        The source.

    Raises:
        DataError: A folder, a file or the partner of a file is missing or cannot be read; the message names it and a
            remedy.
        UnreachableError: The server of a bucket does not answer, or refuses.
    """
    module = import_module(f"lwfed.data.sources.{data.source}")
    try:
        if data.root is not None and data.root.startswith(S3):
            return cast(BucketModule, module).open_folder(data, open_remote(data.root, cache=cache, progress=fetching))
        return cast(SourceModule, module).open_data(data)
    except LwfedError:
        raise
    except OSError as error:
        raise DataError(
            f"{error.filename or data.root} cannot be read: {error.strerror or error}",
            remedy=f"make data.root and what it holds readable for the user {os.getuid()}",
        ) from None
