"""Concatenation of the modalities' projections and of their sum weighted by attention over the modalities.

The weights are a softmax over the M modalities. The public code of arXiv 2407.15426 takes the softmax over all P
outputs of its scoring layer and uses two of them as the weights, which then need not sum to one; here the layer has one
output per modality.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lwfed.models.protocol import Fusion


class ConcatAttention(Fusion):
    """[p_1; ...; p_M; sum_m a_m V_m(p_m)], with a = softmax(S([p_1; ...; p_M])).

    Modalities are in the order of their names.
    """

    def __init__(self, modalities: Sequence[str], *, width: int) -> None:
        count = len(modalities)
        super().__init__(width=(count + 1) * width)
        self.score = nn.Linear(count * width, count)
        self.value = nn.ModuleDict({modality: nn.Linear(width, width) for modality in sorted(modalities)})

    def forward(self, projections: Mapping[str, Float[Tensor, "B P"]]) -> Float[Tensor, "B F"]:
        joined = torch.cat([projections[modality] for modality in sorted(projections)], dim=-1)
        parts = joined.chunk(len(self.value), dim=-1)  # views, so that the layers below save one tensor
        values = torch.stack([layer(part) for layer, part in zip(self.value.values(), parts, strict=True)], dim=1)
        weights = self.score(joined).softmax(-1)
        return torch.cat([joined, (weights.unsqueeze(-1) * values).sum(1)], dim=-1)


def build(modalities: Sequence[str], *, width: int) -> ConcatAttention:
    """Builds the fusion; see `protocol.FusionModule`."""
    return ConcatAttention(modalities, width=width)
