"""How AdamW's two moments are kept between steps: 4, 2 or about 1 byte each a parameter.

fp32 is torch's own. The others are read into fp32 for a step and rounded again without bias: at beta_2 = 0.999 a second
moment moves by less than half a step of bf16 or int8, so that rounding to the nearest would freeze it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from lwfed.federated.rounding import from_squares, split_bits, to_bf16, to_squares

BLOCK = 256
"""Values that share a scale in int8; `lwfed.cost.memory` counts with the same."""
FIRST_LEVELS, SECOND_LEVELS = 127, 255

Kept = dict[str, Tensor]


@runtime_checkable
class Moments(Protocol):
    """A way of keeping both moments of N parameters, which are read and written in slices of whole blocks."""

    def empty(self, count: int, *, device: torch.device) -> Kept:
        """Returns moments of zero."""

    def read(self, kept: Kept, part: slice) -> tuple[Tensor, Tensor]:
        """Returns both moments of some parameters in fp32, as new tensors."""

    def write(self, kept: Kept, part: slice, first: Tensor, second: Tensor, *, bits: Tensor) -> None:
        """Rounds both moments of some parameters; `bits` are 32 random ones for each."""


class Bf16Moments:
    """Both as bf16: 4 bytes a parameter."""

    def empty(self, count: int, *, device: torch.device) -> Kept:
        return {name: torch.zeros(count, dtype=torch.bfloat16, device=device) for name in ("first", "second")}

    def read(self, kept: Kept, part: slice) -> tuple[Tensor, Tensor]:
        return kept["first"][part].float(), kept["second"][part].float()

    def write(self, kept: Kept, part: slice, first: Tensor, second: Tensor, *, bits: Tensor) -> None:
        low, high = split_bits(bits)
        kept["first"][part] = to_bf16(first, chances=low)
        kept["second"][part] = to_bf16(second, chances=high)


class Int8Moments:
    """Both as squares of 8-bit numbers with a scale a block: 2 bytes a parameter and 8 a block.

    A second moment above 0 stays above 0: it would else divide by epsilon alone. Only there rounding has a bias, up.
    """

    def empty(self, count: int, *, device: torch.device) -> Kept:
        blocks = -(-count // BLOCK)
        return {
            "first": torch.zeros(count, dtype=torch.int8, device=device),
            "second": torch.zeros(count, dtype=torch.uint8, device=device),
            "first_scale": torch.zeros(blocks, 1, device=device),
            "second_scale": torch.zeros(blocks, 1, device=device),
        }

    def read(self, kept: Kept, part: slice) -> tuple[Tensor, Tensor]:
        count = kept["first"][part].numel()
        first, second = (
            from_squares(_blocks(kept[name][part]), levels=levels, scale=kept[f"{name}_scale"][_scales(part)])
            for name, levels in (("first", FIRST_LEVELS), ("second", SECOND_LEVELS))
        )
        return first.view(-1)[:count], second.view(-1)[:count]

    def write(self, kept: Kept, part: slice, first: Tensor, second: Tensor, *, bits: Tensor) -> None:
        count, scales = first.numel(), _scales(part)
        low, high = (_blocks(half) for half in split_bits(bits))
        signed, squares = _blocks(first), _blocks(second)
        code, kept["first_scale"][scales] = to_squares(signed.abs(), levels=FIRST_LEVELS, chances=low)
        kept["first"][part] = code.copysign_(signed).to(torch.int8).view(-1)[:count]
        code, kept["second_scale"][scales] = to_squares(squares, levels=SECOND_LEVELS, chances=high)
        kept["second"][part] = torch.maximum(code, squares > 0).to(torch.uint8).view(-1)[:count]


MOMENTS: Mapping[str, Moments] = {"bf16": Bf16Moments(), "int8": Int8Moments()}


def _blocks(values: Tensor) -> Tensor:
    """Views values as blocks; the last is filled with zeros."""
    short = -values.numel() % BLOCK
    return (torch.nn.functional.pad(values, (0, short)) if short else values).view(-1, BLOCK)


def _scales(part: slice) -> slice:
    return slice(part.start // BLOCK, -(-part.stop // BLOCK))
