"""What a source of examples promises: to list them at once, and to read pixels and samples when asked."""

from __future__ import annotations

from collections.abc import Sequence
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
        """Returns the examples of `train` or `test`, always in the same order."""

    def version(self) -> str:
        """Returns a digest of what the data are, wherever they lie."""

    def image(self, example: Example) -> Image.Image:
        """Reads the example's image (RGB). Raises DataError that names the file."""

    def waveform(self, example: Example) -> tuple[Waveform, int]:
        """Reads the example's sound: samples [N] and samples per second. Raises DataError that names the file."""


@runtime_checkable
class Opening(Protocol):
    """What the module of a source offers."""

    def open_data(self, data: DataSpec) -> Source:
        """Opens the data. Raises DataError that names what is missing, before any work is done."""
