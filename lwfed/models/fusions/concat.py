"""Concatenation of the modalities' projections."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from lwfed.models.protocol import Fusion


class Concat(Fusion):
    """Concatenates projections in the order of the modalities' names."""

    def forward(self, projections: Mapping[str, Float[Tensor, "B P"]]) -> Float[Tensor, "B MP"]:
        return torch.cat([projections[modality] for modality in sorted(projections)], dim=-1)


def build(modalities: Sequence[str], *, width: int) -> Concat:
    """Builds the fusion; see `protocol.FusionModule`."""
    return Concat(width=len(modalities) * width)
