"""Codecs: they send a tensor in fewer bits, with unbiased stochastic rounding.

`int8` is QSGD's quantiser with 127 levels in each direction and the largest magnitude instead of the norm (Alistarh et
al. 2017, arXiv 1610.02132, section 3.1), a row at a time. `bf16` keeps the upper half of an fp32's bits; the lower half
is the probability of rounding away from zero. In both, E decode(encode(x)) = x, up to the rounding of fp32 arithmetic
(2^-17 of a step), and no item is off by more than one step: a row's scale, or the distance between the two bf16 numbers
around x.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from lwfed.types.encoded import SCALE, Codec, num_rows
from lwfed.types.errors import CheckpointError, DivergedError
from lwfed.types.seeds import as_int

LEVELS = 127
LARGEST = 2.0**127
"""Magnitudes from here on are refused like infinite ones, because rounding up could make them infinite."""
CHUNK = 1 << 20
"""Items encoded at a time, to bound memory. Changing it changes which random number rounds which item."""


def generator_of(seed: str) -> torch.Generator:
    """Returns a generator for a seed (hex text)."""
    return torch.Generator().manual_seed(as_int(seed))


def encode(name: str, tensor: Tensor, *, codec: Codec, generator: torch.Generator) -> dict[str, Tensor]:
    """Encodes a tensor.

    Args:
        name: Its name.
        tensor: fp32, of any shape, on the CPU.
        codec: `bf16` or `int8`.
        generator: Decides in which direction each item is rounded.

    Returns:
        The tensors to send, with the names, types and shapes that `lwfed.types.encoded.encoded` returns.

    Raises:
        DivergedError: An item is NaN, infinite or not below 2^127.
    """
    rows = _rows(tensor)
    largest = rows.abs().amax(dim=1) if rows.numel() else rows.new_zeros(rows.shape[0])
    if not bool((largest < LARGEST).all()):
        raise DivergedError(f"{name} is not finite and cannot be sent", remedy="lower training.learning_rate")
    if codec == "bf16":
        out = torch.empty(rows.shape, dtype=torch.bfloat16)
        for start, stop in _chunks(rows):
            out[start:stop] = _to_bf16(rows[start:stop], generator)
        return {name: out.reshape(tensor.shape)}
    scale = row_scales(largest)
    out = torch.empty(rows.shape, dtype=torch.int8)
    divisor = torch.where(scale > 0, scale, 1.0).unsqueeze(1)
    for start, stop in _chunks(rows):
        out[start:stop] = _to_levels(rows[start:stop] / divisor[start:stop], generator)
    return {name: out.reshape(tensor.shape), name + SCALE: scale}


def decode(name: str, sent: Mapping[str, Tensor]) -> Tensor:
    """Decodes a tensor.

    Args:
        name: Its name.
        sent: The tensors that `encode` returned, possibly among others.

    Returns:
        An fp32 tensor with the original shape.

    Raises:
        CheckpointError: Its scales are missing or too few.
    """
    tensor, scale = sent[name], sent.get(name + SCALE)
    if tensor.dtype == torch.bfloat16:
        return tensor.float()
    if scale is None or scale.shape != (num_rows(tuple(tensor.shape)),):
        raise CheckpointError(f"{name} was sent without its scales", remedy="run the same lwfed version on all clients")
    return _rows(tensor).float().mul_(scale.unsqueeze(1)).reshape(tensor.shape)


def _rows(tensor: Tensor) -> Tensor:
    count = num_rows(tuple(tensor.shape))
    return tensor.detach().reshape(count, tensor.numel() // count if count else 0)


def _chunks(rows: Tensor) -> list[tuple[int, int]]:
    """Splits rows into ranges of about `CHUNK` items."""
    step = max(1, CHUNK // max(1, rows.shape[1]))
    return [(start, min(start + step, rows.shape[0])) for start in range(0, rows.shape[0], step)]


def row_scales(largest: Tensor) -> Tensor:
    """Returns the smallest fp32 scales with `LEVELS` * scale >= each row's largest magnitude; 0 for a row of zeros."""
    scale = (largest.double() / LEVELS).float()
    short = scale.double() * LEVELS < largest.double()  # exact: 24 and 7 bits
    return torch.where(short, torch.nextafter(scale, torch.full_like(scale, torch.inf)), scale)


def _to_levels(steps: Tensor, generator: torch.Generator) -> Tensor:
    """Rounds to a neighbouring integer, away from zero with the fraction's probability."""
    whole = steps.trunc()
    fraction = steps - whole  # exact, with the item's sign
    up = torch.rand(steps.shape, generator=generator) < fraction.abs()
    return whole.add_(up * fraction.sign()).to(torch.int8)


def _to_bf16(rows: Tensor, generator: torch.Generator) -> Tensor:
    """Adds a random 16-bit number to the 16 bits that are dropped; a carry rounds away from zero."""
    bits = rows.contiguous().view(torch.int32)
    chance = torch.randint(0, 1 << 16, rows.shape, dtype=torch.int32, generator=generator)
    return ((bits + chance) >> 16).to(torch.int16).view(torch.bfloat16)
