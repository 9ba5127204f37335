"""Concatenation of the modalities' projections and of their sum."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from lwfed.models.protocol import Fusion


class ConcatSum(Fusion):
    """[p_1; ...; p_M; p_1 + ... + p_M], in the order of the modalities' names."""

    def forward(self, projections: Mapping[str, Float[Tensor, "B P"]]) -> Float[Tensor, "B F"]:
        parts = [projections[modality] for modality in sorted(projections)]
        return torch.cat([*parts, torch.stack(parts).sum(0)], dim=-1)


def build(modalities: Sequence[str], *, width: int) -> ConcatSum:
    """Builds the fusion; see `protocol.FusionModule`."""
    return ConcatSum(width=(len(modalities) + 1) * width)
