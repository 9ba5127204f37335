"""Supervised learning: cross-entropy of the fused modalities' logits."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional as F

from lwfed import ranks


def cross_entropy(logits: Float[Tensor, "B C"], labels: Int64[Tensor, " B"]) -> Float[Tensor, ""]:
    """Returns the mean cross-entropy over the examples of all ranks.

    Args:
        logits: The classes' logits.
        labels: True classes, in [0, C).

    Returns:
        This rank's share of the mean: over ranks, the shares sum to the mean and their gradients to its gradient.
    """
    with torch.autocast(logits.device.type, enabled=False):
        return F.cross_entropy(logits.float(), labels, reduction="sum") / sum(ranks.row_counts(labels))
