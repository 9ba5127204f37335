"""Length buckets: captions of similar length share a batch, so that less of it is padding.

Only batches near one another in the epoch's shuffled order exchange examples, and the batches are then shuffled: an
epoch holds the same examples, and its lengths neither rise nor fall.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

WINDOW = 16
"""Batches that exchange examples."""


def by_length(
    batches: Sequence[Sequence[int]], *, length: Callable[[int], int], rng: np.random.Generator
) -> list[list[int]]:
    """Sorts examples by length within windows of batches, and shuffles the batches.

    Args:
        batches: An epoch's batches of examples, shuffled.
        length: Length of an example's caption; equal ones stay in their order.
        rng: Shuffles.

    Returns:
        Batches of the same sizes and, together, of the same examples.
    """
    sorted_batches: list[list[int]] = []
    for start in range(0, len(batches), WINDOW):
        window = batches[start : start + WINDOW]
        pool = iter(sorted((n for batch in window for n in batch), key=length))
        sorted_batches += [[next(pool) for _ in batch] for batch in window]
    return [sorted_batches[n] for n in rng.permutation(len(sorted_batches))]
