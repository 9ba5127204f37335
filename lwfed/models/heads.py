"""Heads: the projection head H_m of a modality and the prediction head H_sup (arXiv 2407.15426, section V-A)."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from lwfed.models.batchnorm import BatchNorm
from lwfed.spec.model import ProjectionSpec, SupervisedSpec


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


class PredictionHead(nn.Module):
    """Classifies fused projections: linear, dropout, ReLU, linear."""

    def __init__(self, width: int, *, spec: SupervisedSpec, num_classes: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(width, spec.hidden)
        self.dropout = nn.Dropout(spec.dropout)
        self.out = nn.Linear(spec.hidden, num_classes)

    def forward(self, fused: Float[Tensor, "B F"]) -> Float[Tensor, "B C"]:
        return self.out(self.dropout(self.hidden(fused)).relu())
