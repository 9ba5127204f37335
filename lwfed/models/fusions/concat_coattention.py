"""Concatenation of the modalities' projections and of what each attends to in the others.

Co-attention compares every item of one projection with every item of another. It is symmetric: each modality has a
layer of its own, and each pair one map, whose rows are the weights of one direction and whose columns those of the
other. The public code of arXiv 2407.15426 has two modalities and maps only the image's side.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lwfed.models.protocol import Fusion


class ConcatCoattention(Fusion):
    """[p_1; ...; p_M; c_1; ...; c_M], in the order of the modalities' names.

    With k_m = tanh(K_m(p_m)) and the map A_mn = k_m k_n^T [P, P], c_m is the mean over n != m of softmax(A_mn) p_n, the
    softmax taken over the items of n. Memory grows with P^2 for each pair.
    """

    def __init__(self, modalities: Sequence[str], *, width: int) -> None:
        super().__init__(width=2 * len(modalities) * width)
        self.key = nn.ModuleDict({modality: nn.Linear(width, width) for modality in sorted(modalities)})

    def forward(self, projections: Mapping[str, Float[Tensor, "B P"]]) -> Float[Tensor, "B F"]:
        count = len(self.key)
        joined = torch.cat([projections[modality] for modality in sorted(projections)], dim=-1)
        parts = joined.chunk(count, dim=-1)  # views, so that the layers below save one tensor
        keys = [layer(part).tanh() for layer, part in zip(self.key.values(), parts, strict=True)]
        attended: list[list[Tensor]] = [[] for _ in range(count)]
        for m, n in combinations(range(count), 2):
            scores = keys[m].unsqueeze(2) * keys[n].unsqueeze(1)
            attended[m].append(_weighted(scores.softmax(2), parts[n]))
            attended[n].append(_weighted(scores.softmax(1).transpose(1, 2), parts[m]))
        return torch.cat([joined, *(torch.stack(found).mean(0) for found in attended)], dim=-1)


def _weighted(weights: Float[Tensor, "B P Q"], part: Float[Tensor, "B Q"]) -> Float[Tensor, "B P"]:
    return torch.bmm(weights, part.unsqueeze(2)).squeeze(2)


def build(modalities: Sequence[str], *, width: int) -> ConcatCoattention:
    """Builds the fusion; see `protocol.FusionModule`."""
    return ConcatCoattention(modalities, width=width)
