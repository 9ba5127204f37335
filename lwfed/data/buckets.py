"""Length buckets: captions of similar length share a batch, which reduces padding.

Only batches close to each other in the epoch's shuffled order exchange examples, and then the batches are shuffled: an
epoch has the same examples, and lengths do not follow a trend. But a client trains on the longest batch first, so that
a lack of memory shows in the first step, and the first step's measurements are the largest.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

WINDOW = 16
"""Number of consecutive batches that exchange examples."""


def by_length(
    batches: Sequence[Sequence[int]], *, length: Callable[[int], int], rng: np.random.Generator
) -> list[list[int]]:
    """Sorts examples by length within windows of batches, and shuffles the batches.

    A shorter last batch gets the shortest captions of its window.

    Args:
        batches: An epoch's shuffled batches of examples.
        length: Returns the length of an example's caption; captions of equal length keep their order.
        rng: Shuffles the batches.

    Returns:
        Batches of the same sizes with, in total, the same examples.
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
    """Moves the batch with the longest caption to the front; if batch sizes differ, one of the largest batches.

    Args:
        batches: An epoch's batches of examples.
        length: Returns the length of an example's caption.
        among: Number of leading batches that are trained on and may be moved; None for all.
    """
    used = batches[:among]
    first = max(range(len(used)), key=lambda n: (len(used[n]), max(map(length, used[n]))))
    return [used[first], *used[:first], *used[first + 1 :], *batches[len(used) :]]
