"""The tensors that a tensor is sent as: names, types and shapes per codec, known without its values.

`bf16` halves the size of items. `int8` adds one fp32 scale per row, under the tensor's name and `:scale`. Buffers, and
tensors that are not fp32, are sent unchanged.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from lwfed.types.tensors import TensorSpec

Codec = Literal["fp32", "bf16", "int8"]
SCALE = ":scale"
"""Suffix of the name of a tensor's row scales."""


def is_lossless(codec: Codec) -> bool:
    """Returns whether a codec sends tensors unchanged, so that there is no rounding error to keep."""
    return codec == "fp32"


def is_encoded(spec: TensorSpec, codec: Codec) -> bool:
    """Returns whether a tensor of this type is sent as an encoded change instead of its value."""
    return not is_lossless(codec) and spec.dtype == "F32" and not spec.buffer


def num_rows(shape: tuple[int, ...]) -> int:
    """Returns the number of rows, each with its own scale: a matrix's or a convolution's outputs, a table's entries.

    Rows are counted along the first size that is not 1, if another such size follows; otherwise the tensor is one row.
    An empty tensor has no rows.
    """
    sizes = [size for size in shape if size != 1]
    if 0 in sizes:
        return 0
    return sizes[0] if len(sizes) > 1 else 1


def encoded(name: str, spec: TensorSpec, codec: Codec) -> dict[str, TensorSpec]:
    """Returns the tensors that one tensor is sent as: name -> type and shape."""
    if not is_encoded(spec, codec):
        return {name: TensorSpec(shape=spec.shape, dtype=spec.dtype)}
    if codec == "bf16":
        return {name: TensorSpec(shape=spec.shape, dtype="BF16")}
    return {
        name: TensorSpec(shape=spec.shape, dtype="I8"),
        name + SCALE: TensorSpec(shape=(num_rows(spec.shape),), dtype="F32"),
    }


def encoded_specs(specs: Mapping[str, TensorSpec], codec: Codec) -> dict[str, TensorSpec]:
    """Returns the tensors that several tensors are sent as; see `encoded`."""
    return {key: item for name, spec in specs.items() for key, item in encoded(name, spec, codec).items()}
