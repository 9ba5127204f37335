"""Classification metrics from one confusion matrix over all examples: a mean of batches' F1 is not the F1."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int64
from torch import Tensor


def confusion(logits: Float[Tensor, "B C"], labels: Int64[Tensor, " B"]) -> Int64[Tensor, "C C"]:
    """Counts (true class, predicted class) pairs; matrices of several batches can be added."""
    classes = logits.shape[1]
    pairs = labels * classes + logits.argmax(1)
    return torch.bincount(pairs, minlength=classes * classes).view(classes, classes)


def metrics(matrix: Int64[Tensor, "C C"]) -> dict[str, float]:
    """Computes accuracy, and precision, recall and F1 averaged over classes (macro).

    Classes that occur neither as labels nor as predictions are left out of the average; if a class is never predicted
    its precision is 0, and if it is never a label its recall is 0.

    Args:
        matrix: Counts, true class by predicted class.

    Returns:
        `accuracy`, `precision`, `recall`, `f1`, each in [0, 1].
    """
    counts = matrix.double()
    hits, true, predicted = counts.diagonal(), counts.sum(1), counts.sum(0)
    seen = (true + predicted) > 0
    return {
        "accuracy": float(hits.sum() / counts.sum().clamp(min=1)),
        "precision": _macro(hits, predicted, seen),
        "recall": _macro(hits, true, seen),
        "f1": _macro(2 * hits, true + predicted, seen),
    }


def _macro(part: Tensor, whole: Tensor, seen: Tensor) -> float:
    ratio = torch.where(whole > 0, part / whole.clamp(min=1), 0)
    return float(ratio[seen].mean()) if bool(seen.any()) else 0.0
