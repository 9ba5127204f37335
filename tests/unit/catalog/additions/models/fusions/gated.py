"""A weighted sum of the projections, whose weights a layer draws from all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lwfed.models.protocol import Fusion


class Gated(Fusion):
    """Weights are the softmax of a linear layer over all projections."""

    def __init__(self, count: int, *, width: int) -> None:
        super().__init__(width=width)
        self.gate = nn.Linear(count * width, count)

    def forward(self, projections: Mapping[str, Float[Tensor, "B P"]]) -> Float[Tensor, "B P"]:
        parts = [projections[modality] for modality in sorted(projections)]
        weights = self.gate(torch.cat(parts, dim=1)).softmax(1)
        return (weights.unsqueeze(-1) * torch.stack(parts, dim=1)).sum(1)


def build(modalities: Sequence[str], *, width: int) -> Gated:
    return Gated(len(modalities), width=width)
