"""Storage of AdamW's two moments between steps: 4, 2 or about 1 byte per moment per parameter.

fp32 is torch's own. The other formats are read into fp32 for a step and then rounded without bias: at beta_2 = 0.999 a
second moment changes by less than half a step of bf16 or int8, so rounding to nearest would freeze it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from lwfed.federated.rounding import from_squares, split_bits, to_bf16, to_squares

BLOCK = 256
"""Number of values that share a scale in int8; `lwfed.cost.memory` uses the same number."""
FIRST_LEVELS, SECOND_LEVELS = 127, 255

MomentState = dict[str, Tensor]


@runtime_checkable
class Moments(Protocol):
    """A storage format for both moments of N parameters, read and written in slices of whole blocks."""

    def empty(self, count: int, *, device: torch.device) -> MomentState:
        """Returns zero moments."""

    def read(self, state: MomentState, part: slice) -> tuple[Tensor, Tensor]:
        """Returns both moments of the parameters in `part` in fp32, as new tensors."""

    def write(self, state: MomentState, part: slice, first: Tensor, second: Tensor, *, bits: Tensor) -> None:
        """Rounds and stores both moments of the parameters in `part`; `bits` has 32 random bits per parameter."""


class Bf16Moments:
    """Both moments in bf16: 4 bytes per parameter."""

    def empty(self, count: int, *, device: torch.device) -> MomentState:
        return {name: torch.zeros(count, dtype=torch.bfloat16, device=device) for name in ("first", "second")}

    def read(self, state: MomentState, part: slice) -> tuple[Tensor, Tensor]:
        return state["first"][part].float(), state["second"][part].float()

    def write(self, state: MomentState, part: slice, first: Tensor, second: Tensor, *, bits: Tensor) -> None:
        low, high = split_bits(bits)
        state["first"][part] = to_bf16(first, chances=low)
        state["second"][part] = to_bf16(second, chances=high)


class Int8Moments:
    """Both moments as squares of 8-bit numbers with a scale per block: 2 bytes per parameter and 8 per block.

    A second moment above 0 stays above 0, since otherwise the step would divide by epsilon alone. Only there is
    rounding biased, upwards.
    """

    def empty(self, count: int, *, device: torch.device) -> MomentState:
        blocks = -(-count // BLOCK)
        return {
            "first": torch.zeros(count, dtype=torch.int8, device=device),
            "second": torch.zeros(count, dtype=torch.uint8, device=device),
            "first_scale": torch.zeros(blocks, 1, device=device),
            "second_scale": torch.zeros(blocks, 1, device=device),
        }

    def read(self, state: MomentState, part: slice) -> tuple[Tensor, Tensor]:
        count = state["first"][part].numel()
        first, second = (
            from_squares(_blocks(state[name][part]), levels=levels, scale=state[f"{name}_scale"][_scales(part)])
            for name, levels in (("first", FIRST_LEVELS), ("second", SECOND_LEVELS))
        )
        return first.view(-1)[:count], second.view(-1)[:count]

    def write(self, state: MomentState, part: slice, first: Tensor, second: Tensor, *, bits: Tensor) -> None:
        count, scales = first.numel(), _scales(part)
        low, high = (_blocks(half) for half in split_bits(bits))
        signed, squares = _blocks(first), _blocks(second)
        code, state["first_scale"][scales] = to_squares(signed.abs(), levels=FIRST_LEVELS, chances=low)
        state["first"][part] = code.copysign_(signed).to(torch.int8).view(-1)[:count]
        code, state["second_scale"][scales] = to_squares(squares, levels=SECOND_LEVELS, chances=high)
        state["second"][part] = torch.maximum(code, squares > 0).to(torch.uint8).view(-1)[:count]


MOMENTS: Mapping[str, Moments] = {"bf16": Bf16Moments(), "int8": Int8Moments()}


def _blocks(values: Tensor) -> Tensor:
    """Views values as blocks, the last padded with zeros."""
    short = -values.numel() % BLOCK
    return (torch.nn.functional.pad(values, (0, short)) if short else values).view(-1, BLOCK)


def _scales(part: slice) -> slice:
    return slice(part.start // BLOCK, -(-part.stop // BLOCK))
