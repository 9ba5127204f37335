"""Supervised learning: cross-entropy of the fused modalities' logits, with smoothed labels and weighted classes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional as F

from lwfed import ranks


def cross_entropy(
    logits: Float[Tensor, "B C"],
    labels: Int64[Tensor, " B"],
    *,
    label_smoothing: float = 0.0,
    class_weights: Float[Tensor, " C"] | None = None,
    of: int | None = None,
) -> Float[Tensor, ""]:
    """Returns the mean cross-entropy over the examples of all ranks.

    With smoothing e (Szegedy et al. 2016, arXiv 1512.00567, section 7) and weights w, the loss of an example of class y
    is -(1 - e) w_y log p_y - e / C sum_c w_c log p_c. The mean is over the number of examples and not over their
    weights, which differ between parts of a batch: so the parts add up to the whole.

    Args:
        logits: The classes' logits.
        labels: True classes, in [0, C).
        label_smoothing: e, in [0, 1).
        class_weights: w; None: 1 for each class.
        of: Number of examples over which the mean is taken, if those that are not here count as zero; None: as many as
            all ranks have.

    Returns:
        This rank's share of the mean: over ranks, the shares sum to the mean and their gradients to its gradient.
    """
    with torch.autocast(logits.device.type, enabled=False):
        total = F.cross_entropy(
            logits.float(), labels, weight=class_weights, label_smoothing=label_smoothing, reduction="sum"
        )
        return total / (sum(ranks.row_counts(labels)) if of is None else of)


def balanced_weights(counts: Sequence[int]) -> list[float]:
    """Returns the weights of classes that make each count the same: N / (K n_c), with K classes that have examples.

    Their mean over the N examples is 1.

    Args:
        counts: n_c, the number of training examples of each class; a class without any has weight 0.
    """
    present = sum(count > 0 for count in counts)
    return [sum(counts) / (present * count) if count else 0.0 for count in counts]
