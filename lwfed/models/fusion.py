"""Fusion: how the projections of several modalities become one vector; a new kind is one entry of the table."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Fusion:
    """One kind of fusion.

    Attributes:
        fuse: Modality -> projection, to the fused vector.
        width: Number of modalities and width P of a projection, to the width of the fused vector.
    """

    fuse: Callable[[Mapping[str, Tensor]], Tensor]
    width: Callable[[int, int], int]


def concat(projections: Mapping[str, Float[Tensor, "B P"]]) -> Float[Tensor, "B MP"]:
    """Sets the projections side by side, in the order of the modalities' names."""
    return torch.cat([projections[modality] for modality in sorted(projections)], dim=-1)


FUSIONS: dict[str, Fusion] = {"concat": Fusion(fuse=concat, width=lambda count, out: count * out)}
"""`model.objective.fusion` -> how."""
