"""Kept outputs as rows of fp32, bf16 or int8: written by rounding to the nearest, and decoded where they are used.

bf16 is off by at most 2^-8 of each value, int8 by half of the row's scale, which is its largest magnitude / 127. A row
that is not finite is decoded as NaN, which training refuses. `lwfed.types.kept` has the layout.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from lwfed.federated.codecs import LEVELS, row_scales
from lwfed.types.encoded import Codec
from lwfed.types.kept import SCALE_BYTES

IN_FILES: Mapping[str, np.dtype[Any]] = {
    "fp32": np.dtype(np.float32),
    "bf16": np.dtype(np.int16),
    "int8": np.dtype(np.uint8),
}
"""Type of the items that a file is read as; numpy has no bf16."""
IN_MEMORY = {"fp32": torch.float32, "bf16": torch.bfloat16, "int8": torch.uint8}


def columns(width: int, codec: Codec) -> int:
    """Returns the number of a row's items in a file: D, in int8 with the bytes of the scale."""
    return width + SCALE_BYTES if codec == "int8" else width


def encode_rows(rows: Float[Tensor, "N D"], codec: Codec) -> Shaped[Tensor, "N C"]:
    """Encodes rows for a file.

    Args:
        rows: fp32, on any device.
        codec: The format.

    Returns:
        float32 [N, D], bfloat16 [N, D], or uint8 [N, D + 4]: int8 values and the bytes of the scale.
    """
    if codec == "fp32":
        return rows.contiguous()
    if codec == "bf16":
        return rows.to(torch.bfloat16)
    largest = rows.abs().amax(dim=1) if rows.numel() else rows.new_zeros(rows.shape[0])
    scale = torch.where(largest.isfinite(), row_scales(largest), torch.nan)
    steps = (rows / torch.where(scale > 0, scale, 1.0).unsqueeze(1)).round_().clamp_(-LEVELS, LEVELS)
    steps = steps.nan_to_num_(0.0)  # of a row that its scale makes NaN
    return torch.cat([steps.to(torch.int8).view(torch.uint8), scale.unsqueeze(1).view(torch.uint8)], dim=1)


def decode(stored: Shaped[Tensor, "*B C"]) -> Float[Tensor, "*B D"]:
    """Decodes rows of any of the formats, which their type tells, on the device that they are on; zeros stay zeros."""
    if stored.dtype != torch.uint8:
        return stored.float()
    scale = stored[..., -SCALE_BYTES:].contiguous().view(torch.float32)
    return stored[..., :-SCALE_BYTES].view(torch.int8).float().mul_(scale)


def rounded(tokens: Float[Tensor, "B T D"], codec: Codec) -> Float[Tensor, "B T D"]:
    """Returns tokens as they are after they were written and read."""
    if codec == "fp32":
        return tokens.float()
    return decode(encode_rows(tokens.float().flatten(0, 1), codec)).view(tokens.shape)
