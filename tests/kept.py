"""Entries of the prefix cache that have all inputs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from torch import Tensor

from lwfed.data.prefix_cache import CachedPrefix, Entry, add_part
from lwfed.data.prefix_inputs import FillBatch, Inputs
from lwfed.data.protocol import Source
from lwfed.types.encoded import Codec

CHAIN, CODE = ("stem", "block"), "code"


def entry_of(inputs: Inputs, *, chain: tuple[str, ...] = CHAIN, code: str = CODE, codec: Codec = "fp32") -> Entry:
    return Entry(inputs, chain=chain, code=code, codec=codec)


def batches_of(inputs: Inputs, source: Source, *, batch_size: int) -> Iterator[Any]:
    """Yields all inputs in order."""
    numbers = range(len(inputs))
    parts = [tuple(numbers[start : start + batch_size]) for start in range(0, len(inputs), batch_size)]
    return inputs.load(source, [FillBatch(part, 0, rows=len(part)) for part in parts], workers=0)


def kept_whole(folder: Path, entry: Entry, outputs: Iterable[tuple[Tensor, Tensor | None]]) -> CachedPrefix:
    """Writes the outputs of all inputs."""
    return add_part(folder, entry, outputs, numbers=range(len(entry.inputs)))
