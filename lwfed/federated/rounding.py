"""Stochastic rounding: a value becomes one of its two neighbours, with probabilities that preserve its mean.

The random numbers come from a hash of (key, position), not from a generator: they do not depend on the order in which
tensors are rounded, are the same on every rank and device, and cost a few integer passes.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int, Integer
from torch import Tensor

CHANCES = 1 << 16
"""Probabilities are multiples of 1 / CHANCES."""


def random_bits(count: int, *, start: int, key: int, device: torch.device) -> Int[Tensor, " count"]:
    """Hashes the positions `start` to `start + count` - 1 with a key: 32 random bits each, as int32.

    The hash is lowbias32 (C. Wellons, hash-prospector), a bijection of the 32-bit numbers.

    Args:
        count: Number of positions.
        start: The first position.
        key: 32 bits, as a number from -2^31 to 2^31 - 1.
        device: Device of the result.
    """
    bits = torch.arange(start, start + count, dtype=torch.int32, device=device).bitwise_xor_(key)
    shifted = torch.empty_like(bits)
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B - (1 << 32)), (16, None)):
        torch.bitwise_right_shift(bits, shift, out=shifted)
        bits.bitwise_xor_(shifted.bitwise_and_((1 << (32 - shift)) - 1))  # masks the copies of the sign bit
        if factor is not None:
            bits.mul_(factor)
    return bits


def split_bits(bits: Int[Tensor, " N"]) -> tuple[Int[Tensor, " N"], Int[Tensor, " N"]]:
    """Returns the low and the high 16 bits, as numbers from 0 to 65535."""
    return bits.bitwise_and(CHANCES - 1), bits.bitwise_right_shift(16).bitwise_and_(CHANCES - 1)


def to_bf16(values: Float[Tensor, " N"], *, chances: Int[Tensor, " N"]) -> Tensor:
    """Rounds fp32 values to bf16 without bias: the 16 dropped bits are the probability of rounding away from zero.

    Args:
        values: The values to round.
        chances: Uniform in [0, 65536); overwritten.
    """
    return chances.add_(values.view(torch.int32)).bitwise_right_shift_(16).to(torch.int16).view(torch.bfloat16)


def to_squares(
    values: Float[Tensor, "K Z"], *, levels: int, chances: Int[Tensor, "K Z"]
) -> tuple[Float[Tensor, "K Z"], Float[Tensor, "K 1"]]:
    """Rounds non-negative values to squares of integers c, without bias: value ~ (c / levels)^2 x the block's scale.

    Squares are dense near zero: values in a block may differ by a factor of levels^2, instead of `levels` with evenly
    spaced values. Each block has its own scale, as in Dettmers et al. 2022, arXiv 2110.02861.

    Args:
        values: K blocks of Z values.
        levels: Largest c.
        chances: Uniform in [0, 65536).

    Returns:
        c as floats, and each block's largest value.
    """
    scale = values.amax(dim=1, keepdim=True)
    place = values / (scale + (scale == 0))  # in [0, 1]; a division cannot overflow
    place.mul_(levels * levels)
    code = place.sqrt().floor_().clamp_(max=levels)
    place.addcmul_(code, code, value=-1)  # the distance above the lower square; the next square is 2 c + 1 away
    threshold = (2 * code).add_(1).mul_(chances).mul_(1 / CHANCES)
    return code.add_(place > threshold).clamp_(max=levels), scale


def from_squares(code: Integer[Tensor, "K Z"], *, levels: int, scale: Float[Tensor, "K 1"]) -> Tensor:
    """Returns (c / levels)^2 x scale with the sign of c, in fp32."""
    values = code.to(torch.float32)
    return values.mul(values.abs()).mul_(scale / (levels * levels))
