"""The interface of data sources: they list their examples at once, and read pixels and samples on demand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
from PIL import Image

from lwfed.spec.data import DataSpec

Waveform = npt.NDArray[np.float32]
"""Mono samples in [-1, 1]."""


@dataclass(frozen=True, slots=True)
class Example:
    """One example, without its pixels and samples.

    Attributes:
        id: Its name in the source; unique over both splits.
        label: Index into the source's classes; None if the data have none.
        captions: Captions of the image; empty if the data have none.
        fields: Further properties, such as `stem` or `site`.
    """

    id: str
    label: int | None
    captions: tuple[str, ...] = ()
    fields: dict[str, str] = field(default_factory=dict)


class Source(Protocol):
    """A source of examples."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes; empty if the data have none."""

    def examples(self, split: str) -> Sequence[Example]:
        """Returns the examples of `train` or `test`, always in the same order."""

    def version(self) -> str:
        """Returns a digest of the data's content, wherever they are stored."""

    def left_out(self) -> Mapping[str, int]:
        """Returns what lies with the data and is part of no example -> how many; see `lwfed.data.left_out`."""

    def image(self, example: Example) -> Image.Image:
        """Reads the example's image (RGB). Raises DataError, with the file's name, if it cannot."""

    def waveform(self, example: Example) -> tuple[Waveform, int]:
        """Reads the example's sound: samples [N] and samples per second. Raises DataError, with the file's name."""


@runtime_checkable
class SourceModule(Protocol):
    """The interface of a source's module."""

    def open_data(self, data: DataSpec) -> Source:
        """Opens the data. Raises DataError, with the name of what is missing, before any work is done."""
