"""Length buckets: captions of similar length share a batch, so that less of it is padding.

Only batches near one another in the epoch's shuffled order exchange examples, and the batches are then shuffled: an
epoch holds the same examples, and its lengths neither rise nor fall. But what a client trains on first is the longest:
memory that does not suffice is told in the first step, and what is measured there is the largest.
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

    A shorter last batch gets the shortest of its window.

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
        pool = iter(sorted((n for batch in window for n in batch), key=length, reverse=True))
        sorted_batches += [[next(pool) for _ in batch] for batch in window]
    return [sorted_batches[n] for n in rng.permutation(len(sorted_batches))]


def longest_first(
    batches: Sequence[Sequence[int]], *, length: Callable[[int], int], among: int | None = None
) -> list[Sequence[int]]:
    """Moves the batch with the longest caption to the front; of batches of several sizes one of the largest.

    Args:
        batches: An epoch's batches of examples.
        length: Length of an example's caption.
        among: Only so many leading batches are trained on, and one of them is moved; None: all.
    """
    used = batches[:among]
    first = max(range(len(used)), key=lambda n: (len(used[n]), max(map(length, used[n]))))
    return [used[first], *used[:first], *used[first + 1 :], *batches[len(used) :]]
