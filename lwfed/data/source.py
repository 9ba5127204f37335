"""A source of examples: what they are is told at once, and pixels and samples are read only when asked for."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image

from lwfed.spec.data import DataSpec
from lwfed.types.canonical import canonical
from lwfed.types.errors import DataError

Waveform = npt.NDArray[np.float32]
"""Mono samples in [-1, 1]."""


@dataclass(frozen=True, slots=True)
class Example:
    """One example, without its pixels and samples.

    Attributes:
        id: Its name in the source; unique over both splits.
        label: Index into the source's classes; None where the data have none.
        captions: Captions of the image; empty where the data have none.
        fields: What else is known, such as `stem` or `site`.
    """

    id: str
    label: int | None
    captions: tuple[str, ...] = ()
    fields: dict[str, str] = field(default_factory=dict)


class Source(Protocol):
    """Where examples come from."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes; empty where the data have none."""

    def examples(self, split: str) -> Sequence[Example]:
        """Gives the examples of `train` or `test`, always in the same order."""

    def version(self) -> str:
        """Gives a digest of what the data are, wherever they lie."""

    def image(self, example: Example) -> Image.Image:
        """Reads the example's image (RGB). Raises DataError that names the file."""

    def waveform(self, example: Example) -> tuple[Waveform, int]:
        """Reads the example's sound: samples [N] and samples per second. Raises DataError that names the file."""


def open_source(data: DataSpec) -> Source:
    """Opens the data a spec names, and looks for what is missing before any work is done.

    Args:
        data: Which data, and where they lie.

    Returns:
        The source.

    Raises:
        DataError: A folder, a file or the partner of a file is missing; it says which, and what to do.
    """
    if data.source == "shapes":
        from lwfed.data.shapes import open_shapes

        return open_shapes(data.shapes)
    root = data_root(data)
    if data.source == "coco":
        from lwfed.data.coco import open_coco

        return open_coco(root, missing_ok=data.on_bad_example == "skip")
    from lwfed.data.advance import open_advance

    return open_advance(root, test_fraction=data.test_fraction, missing_ok=data.on_bad_example == "skip")


def data_root(data: DataSpec) -> Path:
    """Gives the root folder of data on disk. Raises DataError when it is not there."""
    root = Path(data.root or "").expanduser()
    if not data.root or not root.is_dir():
        raise DataError(
            f"there is no folder {data.root} for the {data.source} data",
            remedy="set data.root to the folder that holds them, or try `data.source: shapes`, which is built in",
        )
    return root


def require_folder(folder: Path, *, remedy: str) -> Path:
    """Gives the folder back. Raises DataError when it is not there."""
    if not folder.is_dir():
        raise DataError(f"there is no folder {folder}", remedy=remedy)
    return folder


def of_split(split: str, *, train: tuple[Example, ...], test: tuple[Example, ...]) -> tuple[Example, ...]:
    """Gives the examples of a split by its name."""
    if split not in ("train", "test"):
        raise ValueError(f"there is no split {split!r} -> use 'train' or 'test'")
    return train if split == "train" else test


def listing_digest(kind: str, *, entries: Iterable[tuple[str, int | str]]) -> str:
    """Digests a listing of names with sizes or digests, in sorted order, without reading large files.

    Args:
        kind: Name of the source.
        entries: (path below the root, bytes or digest) of each file.

    Returns:
        64 hex digits.
    """
    state = hashlib.sha256(kind.encode())
    for entry in sorted(entries, key=lambda item: item[0]):
        state.update(canonical(list(entry)) + b"\n")
    return state.hexdigest()
