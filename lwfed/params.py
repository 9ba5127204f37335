"""Parameters as a vector space: named tensors that are added, scaled, measured and selected by unit."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Mapping
from functools import lru_cache
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from lwfed.types.canonical import canonical
from lwfed.types.tensors import TensorSpec, unit_of

T = TypeVar("T")


class Hasher(Protocol):
    """A hash that takes bytes piece by piece."""

    def update(self, data: memoryview | bytes | bytearray, /) -> None:
        """Takes more bytes."""

    def hexdigest(self) -> str:
        """Returns the digest of all bytes so far, as hex digits."""
        ...


DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
"""Safetensors name of a type -> torch's type."""

DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}


def sub(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns a - b, name by name; the names must be equal."""
    _same_names(a, b)
    return {name: a[name] - b[name] for name in a}


def add_scaled(a: Mapping[str, Tensor], b: Mapping[str, Tensor], *, scale: float) -> dict[str, Tensor]:
    """Returns a + scale * b, name by name; the names must be equal."""
    _same_names(a, b)
    return {name: torch.add(a[name], b[name], alpha=scale) for name in a}


def norm(a: Mapping[str, Tensor]) -> float:
    """Returns the Euclidean norm over all tensors, summed in float64 in the order of the names."""
    return math.sqrt(sum(float(a[name].double().square().sum()) for name in sorted(a)))


def select(a: Mapping[str, Tensor], *, units: Collection[str]) -> dict[str, Tensor]:
    """Returns the tensors of the given units."""
    return {name: tensor for name, tensor in a.items() if unit_of(name) in units}


def by_unit(a: Mapping[str, T]) -> dict[str, dict[str, T]]:
    """Groups tensors, or anything keyed by their names, by unit."""
    units: dict[str, dict[str, T]] = {}
    for name in sorted(a):
        units.setdefault(unit_of(name), {})[name] = a[name]
    return units


def spec_of(tensor: Tensor, *, buffer: bool = False) -> TensorSpec:
    """Returns a tensor's type and shape."""
    return TensorSpec(shape=tuple(tensor.shape), dtype=DTYPE_NAMES[tensor.dtype], buffer=buffer)


def raw_bytes(tensor: Tensor) -> memoryview:
    """Views a tensor's items as bytes, row by row, without a copy if it is contiguous and on the CPU."""
    flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return flat.numpy().data.cast("B")


def hasher_of(spec: TensorSpec) -> Hasher:
    """Returns what a tensor's digest begins with: the sha256 of its type and shape, to be updated with its bytes."""
    return hashlib.sha256(_head(spec.dtype, spec.shape))


@lru_cache(maxsize=1 << 12)
def _head(dtype: str, shape: tuple[int, ...]) -> bytes:
    return canonical([dtype, list(shape)])


def digest_raw(data: memoryview | bytes | bytearray, *, spec: TensorSpec) -> str:
    """Returns the sha256 of a tensor's type, shape and bytes, as 64 hex digits."""
    hasher = hasher_of(spec)
    hasher.update(data)
    return hasher.hexdigest()


def digest(tensor: Tensor) -> str:
    """Returns the digest of a tensor's type, shape and values, which does not depend on its device."""
    return digest_raw(raw_bytes(tensor), spec=spec_of(tensor))


def _same_names(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> None:
    if a.keys() != b.keys():
        odd = sorted(a.keys() ^ b.keys())
        raise ValueError(f"the two sides have different tensors, such as {odd[0]}; select the same units first")
