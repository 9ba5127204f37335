"""Types and shapes of tensors, and the exact layout of a safetensors file; both without torch."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType

ITEM_BYTES: dict[str, int] = {
    "F64": 8, "I64": 8, "F32": 4, "I32": 4, "BF16": 2, "F16": 2, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1,
}  # fmt: skip
"""Bytes per item, by the type's safetensors name."""


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """A named tensor's type and shape.

    Attributes:
        shape: Sizes, outermost first; `()` for a scalar.
        dtype: The safetensors name of the type (`F32`, `I64` ...).
        buffer: Whether it is a buffer (BatchNorm statistics) instead of a parameter.
    """

    shape: tuple[int, ...]
    dtype: str = "F32"
    buffer: bool = False

    @property
    def numel(self) -> int:
        """Number of items."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the items, without a header."""
        return self.numel * ITEM_BYTES[self.dtype]


@dataclass(frozen=True, slots=True)
class Layout:
    """The layout of a safetensors file: the header's bytes and each tensor's position.

    Attributes:
        header: Length prefix and JSON, padded to 8 bytes.
        spans: Tensor name -> (first byte, byte after the last) in the file.
        nbytes: Length of the whole file.
    """

    header: bytes
    spans: Mapping[str, tuple[int, int]]
    nbytes: int


def layout(specs: Mapping[str, TensorSpec]) -> Layout:
    """Lays tensors out in one file, wide types first and then by name, as the safetensors format's alignment requires.

    Args:
        specs: Tensor name -> type and shape.

    Returns:
        The layout; equal specs give equal bytes.
    """
    return _layout(tuple(specs.items()))


@lru_cache(maxsize=1 << 10)
def _layout(items: tuple[tuple[str, TensorSpec], ...]) -> Layout:
    """All clients of a stage lay out the same files."""
    specs = dict(items)
    order = sorted(specs, key=lambda name: (-ITEM_BYTES[specs[name].dtype], name))
    entries: dict[str, dict[str, object]] = {}
    offset = 0
    for name in order:
        spec = specs[name]
        entries[name] = {
            "dtype": spec.dtype,
            "shape": list(spec.shape),
            "data_offsets": [offset, offset + spec.nbytes],
        }
        offset += spec.nbytes
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=True).encode()
    text += b" " * (-len(text) % 8)
    header = len(text).to_bytes(8, "little") + text
    spans: dict[str, tuple[int, int]] = {}
    end = len(header)
    for name in order:
        spans[name] = (end, end + specs[name].nbytes)
        end = spans[name][1]
    return Layout(header=header, spans=MappingProxyType(spans), nbytes=end)


@lru_cache(maxsize=1 << 16)
def unit_of(name: str) -> str:
    """Returns the unit a tensor belongs to: `image.blocks.3`, `image.adapter.2`, `text.projection`, `prediction` ...

    A unit is a part of the model that is trained or frozen, exchanged and stored as a whole.
    """
    parts = name.split(".")
    if parts[0] in ("prediction", "fusion", "temperature"):
        return parts[0]
    return ".".join(parts[:3] if parts[1] in ("blocks", "adapter") else parts[:2])
