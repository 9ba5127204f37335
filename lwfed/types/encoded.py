"""What a tensor becomes when it is encoded to travel: names, types and shapes, known without its values.

`bf16` halves the items. `int8` has one fp32 scale a row beside them, under the tensor's name and `:scale`. Buffers,
and what is not fp32, travel as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from lwfed.types.tensors import TensorSpec

Codec = Literal["fp32", "bf16", "int8"]
SCALE = ":scale"
"""Put after a tensor's name: the scales of its rows."""


def is_lossless(codec: Codec) -> bool:
    """Whether tensors travel as they are. Nothing is rounded off then, so nothing has to be remembered."""
    return codec == "fp32"


def is_encoded(spec: TensorSpec, codec: Codec) -> bool:
    """Whether a tensor of such a type travels as an encoded change, and not as its value."""
    return not is_lossless(codec) and spec.dtype == "F32" and not spec.buffer


def num_rows(shape: tuple[int, ...]) -> int:
    """Returns the number of rows that have a scale each: a matrix's or a convolution's outputs, a table's entries.

    They are counted along the first size that is not 1, if another such size follows it; else the tensor is one row. An
    empty tensor has none.
    """
    sizes = [size for size in shape if size != 1]
    if 0 in sizes:
        return 0
    return sizes[0] if len(sizes) > 1 else 1


def encoded(name: str, spec: TensorSpec, codec: Codec) -> dict[str, TensorSpec]:
    """Returns the tensors that one tensor travels as: name -> type and shape."""
    if not is_encoded(spec, codec):
        return {name: TensorSpec(shape=spec.shape, dtype=spec.dtype)}
    if codec == "bf16":
        return {name: TensorSpec(shape=spec.shape, dtype="BF16")}
    return {
        name: TensorSpec(shape=spec.shape, dtype="I8"),
        name + SCALE: TensorSpec(shape=(num_rows(spec.shape),), dtype="F32"),
    }


def encoded_specs(specs: Mapping[str, TensorSpec], codec: Codec) -> dict[str, TensorSpec]:
    """Returns the tensors that several travel as; see `encoded`."""
    return {key: item for name, spec in specs.items() for key, item in encoded(name, spec, codec).items()}
