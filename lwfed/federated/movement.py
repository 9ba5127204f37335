"""Effective movement: how far parameters have come over a number of rounds, as a share of the way that they went.

ProFL's measure of convergence (Wu et al. 2025, arXiv 2404.13349): with the update u_k of round k, the sum over
parameters of |sum_k u_k|, divided by the sum over parameters and rounds of |u_k|. It is 1 while every parameter keeps
its direction, and near 0 when they oscillate around a point. Since the updates of rounds in a row sum to the difference
of two models, the numerator needs only the first and the last model, and the denominator one number per round.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor


def distance(a: Float[Tensor, "..."], b: Float[Tensor, "..."]) -> float:
    """Returns the sum of |a - b| over all items, in float64."""
    return float((a.double() - b).abs_().sum())


def effective_movement(net: float, way: Sequence[float]) -> float:
    """Returns the effective movement, in [0, 1].

    Args:
        net: Sum over parameters of the distance between the last model and the first.
        way: The same between the models before and after each of the rounds.

    Returns:
        net / sum of way; 0 if nothing moved.
    """
    whole = math.fsum(way)
    return min(1.0, net / whole) if whole else 0.0
