"""Heads: the projection head H_m of a modality and the prediction head H_sup (arXiv 2407.15426, section V-A).

A learnable temperature is here too, as it is trained and exchanged like them.
"""

from __future__ import annotations

import copy
import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lwfed.models.batchnorm import BatchNorm
from lwfed.spec.model import LEAST_TEMPERATURE, ProjectionSpec, SupervisedSpec


class HiddenLayer(nn.Module):
    """Linear without bias, dropout, BatchNorm, ReLU."""

    def __init__(self, width: int, *, out: int, dropout: float) -> None:
        super().__init__()
        self.linear = nn.Linear(width, out, bias=False)
        self.dropout = nn.Dropout(dropout)
        self.norm = BatchNorm(out)

    def forward(self, features: Float[Tensor, "B D"]) -> Float[Tensor, "B H"]:
        return self.norm(self.dropout(self.linear(features))).relu()


class OutLayer(nn.Module):
    """Linear without bias, and BatchNorm without affine parameters."""

    def __init__(self, width: int, *, out: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, out, bias=False)
        self.norm = BatchNorm(out, affine=False)

    def forward(self, features: Float[Tensor, "B H"]) -> Float[Tensor, "B P"]:
        return self.norm(self.linear(features))


class ProjectionHead(nn.Module):
    """Projects a modality's feature of width D to the common width P."""

    def __init__(self, width: int, *, spec: ProjectionSpec) -> None:
        super().__init__()
        hidden = spec.layers - 1
        widths = [width, *[spec.hidden] * hidden]
        self.hidden = nn.ModuleList(
            HiddenLayer(widths[i], out=spec.hidden, dropout=spec.dropout) for i in range(hidden)
        )
        self.out = OutLayer(widths[-1], out=spec.out)

    def forward(self, features: Float[Tensor, "B D"]) -> Float[Tensor, "B P"]:
        for layer in self.hidden:
            features = layer(features)
        return self.out(features)


def frozen_copy(head: ProjectionHead) -> ProjectionHead:
    """Returns a copy of a head that is not trained; it has no dropout, and normalises each batch by its own statistics.

    So as long as the head has not changed, both give the same projections, but for the head's dropout.
    """
    copied = copy.deepcopy(head).requires_grad_(False).train()
    for layer in copied.hidden:
        layer.get_submodule("dropout").eval()
    return copied


class PredictionHead(nn.Module):
    """Classifies fused projections: linear, dropout, ReLU, linear."""

    def __init__(self, width: int, *, spec: SupervisedSpec, num_classes: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(width, spec.hidden)
        self.dropout = nn.Dropout(spec.dropout)
        self.out = nn.Linear(spec.hidden, num_classes)

    def forward(self, fused: Float[Tensor, "B F"]) -> Float[Tensor, "B C"]:
        return self.out(self.dropout(self.hidden(fused)).relu())


class Temperature(nn.Module):
    """A learnable temperature T >= 0.01, as the logarithm of T (CLIP, arXiv 2103.00020, section 2.5).

    A step may end below the least temperature. As in CLIP, the parameter is then moved back before it is used again, so
    that its gradient can raise it.

    Attributes:
        initial: The parameter's initial value.
    """

    def __init__(self, initial: float) -> None:
        super().__init__()
        self.initial = math.log(initial)
        self.log = nn.Parameter(torch.empty(()))

    def forward(self) -> Float[Tensor, ""]:
        least = math.log(LEAST_TEMPERATURE)
        if not self.training:
            return self.log.clamp(min=least).exp()
        with torch.no_grad():
            self.log.clamp_(min=least)
        return self.log.exp()
