"""Names at the ends of lines: each stands where it hides neither lines nor other names."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

from lwfed.report.svg import Plot, text_width

Dot = tuple[float, float]
Box = tuple[float, float, float, float]
"""Left, top, right, bottom."""
PLACES = (
    (10, 4, "start"), (0, -13, "middle"), (0, 21, "middle"), (-10, -10, "end"), (-10, 20, "end"), (10, -12, "start"),
    (10, 20, "start"), (-12, 4, "end"),
)  # fmt: skip
"""Where a label may stand beside the end of its line."""


def labels_at_ends(
    plot: Plot, ways: Mapping[str, Sequence[Dot]], *, width: float, taken: Sequence[Box] = ()
) -> list[tuple[str, Dot, str]]:
    """Finds for each line's name a place at its end.

    Args:
        plot: Where the lines are.
        ways: Name -> the dots its line goes through, px.
        width: Of the figure, px.
        taken: Where other text stands.

    Returns:
        Name, place and anchor of each.
    """
    full = list(taken)
    dots = [dot for way in ways.values() for dot in _dense(way)]
    placed = []
    for label, way in sorted(ways.items(), key=lambda item: item[1][-1]):
        wide = text_width(label, strong=True)
        best: tuple[float, Box, Dot, str] | None = None
        for rank, (dx, dy, anchor) in enumerate(PLACES):
            x, y = way[-1][0] + dx, way[-1][1] + dy
            left = x - {"start": 0.0, "middle": 0.5, "end": 1.0}[anchor] * wide
            box = (left, y - 12, left + wide, y + 3)
            outside = box[0] < plot.left or box[2] > width - 2 or box[1] < plot.top - 8 or box[3] > plot.bottom
            cost = 1000.0 * outside + 200 * sum(_meet(box, other) for other in full)
            cost += sum(box[0] <= u <= box[2] and box[1] <= v <= box[3] for u, v in dots) + 0.1 * rank
            if best is None or cost < best[0]:
                best = cost, box, (x, y), anchor
        assert best is not None
        full.append(best[1])
        placed.append((label, best[2], best[3]))
    return placed


def _dense(way: Sequence[Dot]) -> list[Dot]:
    """Gives points along a line, about 4 px apart."""
    found = list(way)
    for (x, y), (u, v) in itertools.pairwise(way):
        count = int(max(abs(u - x), abs(v - y)) // 4)
        found += [(x + (u - x) * k / count, y + (v - y) * k / count) for k in range(1, count)]
    return found


def _meet(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
