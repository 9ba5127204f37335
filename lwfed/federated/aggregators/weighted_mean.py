"""The weighted mean of the clients' tensors: FedAvg (McMahan et al. 2017, Algorithm 1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from lwfed.federated.aggregator import Update

PART = 1 << 18
"""Items added at a time: torch first converts them to float64, which then stay in a core's cache."""


class Sum(NamedTuple):
    """The running sum of one tensor.

    Attributes:
        total: sum_n w_n x_n in float64, or the maximum of integers; None before the first client.
        weight: sum_n w_n.
    """

    total: Tensor | None = None
    weight: int = 0


@dataclass(frozen=True)
class WeightedMean:
    """Averages floating tensors, BatchNorm statistics included, in float64; takes the maximum of integers."""

    needs_all = False
    one_by_one = True

    def survey(self, updates: Sequence[Update]) -> WeightedMean:
        """Returns the aggregator unchanged: it needs to know nothing in advance."""
        return self

    def init(self, name: str) -> Sum:
        """Returns an empty sum."""
        return Sum()

    def add(self, state: Sum, update: Update, *, name: str) -> Sum:
        """Adds w_n x_n to the sum, in place."""
        tensor, own = update.tensor(name), update.weight_of(name)
        weight = state.weight + own
        if not tensor.is_floating_point():
            return Sum(tensor if state.total is None else torch.maximum(state.total, tensor), weight)
        if state.total is None:  # not zero plus the first tensor, which would turn -0 into 0
            return Sum(tensor.to(torch.float64, copy=True).mul_(own), weight)
        if tensor.numel() <= PART or not (tensor.is_contiguous() and state.total.is_contiguous()):
            return Sum(state.total.add_(tensor, alpha=own), weight)
        for total, part in zip(state.total.view(-1).split(PART), tensor.view(-1).split(PART), strict=True):
            total.add_(part, alpha=own)
        return Sum(state.total, weight)

    def finish(self, state: Sum, *, name: str) -> Tensor:
        """Returns sum_n w_n x_n / sum_n w_n in float64, or the maximum of integers.

        Raises:
            ValueError: No client was added.
        """
        if state.total is None:
            raise ValueError(f"no client sent {name}; a round needs at least one update")
        return state.total.div_(state.weight) if state.total.is_floating_point() else state.total

    def metrics(self) -> dict[str, float]:
        """Returns no metrics."""
        return {}
