"""A few SVG shapes: linear scales, round ticks, axes. Colours are classes, so one figure is right on light and dark."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise

NUM_COLOURS = 6
FONT_PX = 12
LABEL_GAP = 8.0
"""Px between an axis and its labels."""
Span = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Plot:
    """A rectangle in which values are drawn.

    Attributes:
        left, top, right, bottom: The rectangle, px.
        x: Values at its left and right.
        y: Values at its bottom and top.
    """

    left: float
    top: float
    right: float
    bottom: float
    x: Span
    y: Span

    def px(self, value: float) -> float:
        """Horizontal place of a value."""
        return self.left + (value - self.x[0]) / (self.x[1] - self.x[0]) * (self.right - self.left)

    def py(self, value: float) -> float:
        """Vertical place of a value."""
        return self.bottom - (value - self.y[0]) / (self.y[1] - self.y[0]) * (self.bottom - self.top)


def ticks(low: float, high: float, *, count: int = 5, base: int = 10) -> list[float]:
    """Gives about `count` numbers from `low` to `high` that are round in tens, or in a power of `base` (KiB, MiB)."""
    unit = float(base) ** math.floor(math.log(high, base)) if base != 10 and high >= base else 1.0
    return [unit * value for value in _ticks(low / unit, high / unit, count=count)]


def _ticks(low: float, high: float, *, count: int) -> list[float]:
    if not high > low:
        return [low]
    raw = (high - low) / max(1, count)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= raw * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]


def round_ticks(last: int, *, count: int = 8) -> list[int]:
    """Gives about `count` whole numbers from 1 to `last`, both among them; evenly spaced but for the ends."""
    if last <= count:
        return list(range(1, last + 1))
    step = next(s for p in range(6) for s in (10**p, 2 * 10**p, 5 * 10**p) if last / s <= count)
    inner = [number for number in range(3 if step == 2 else step, last, step) if last - number >= 0.6 * step]
    return [1, *inner, last]


def extent(values: Iterable[float], *, zero: bool = False) -> Span:
    """Gives a span that holds the values with a little room; never empty."""
    known = list(values)
    if not known:
        return (0.0, 1.0)
    low, high = min(known), max(known)
    if zero:
        low = min(0.0, low)
    room = 0.06 * (high - low) or 0.1 * abs(high) or 1.0
    return (low if zero and low == 0 else low - room, high + room)


def tag(name: str, content: str = "", **attributes: object) -> str:
    """Writes an element; `class_` and `a_b` become `class` and `a-b`, numbers get one decimal."""
    text = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(_value(value))}"' for key, value in attributes.items()
    )
    return f"<{name}{text}>{content}</{name}>" if content else f"<{name}{text}/>"


def text_width(text: str, *, strong: bool = False) -> float:
    """Gives about how wide a figure's text is, px, in the widest face that browsers fall back to (DejaVu Sans)."""
    ems = sum(
        0.9 if char in "MWmw%×@" else 0.32 if char in " .,:;'|il-/" else 0.7 if char.isupper() else 0.64
        for char in text
    )
    return FONT_PX * ems * (1.1 if strong else 1.0)


def margin(labels: Iterable[str], *, least: float = 44.0) -> float:
    """Gives the room that labels need left of a plot, px."""
    return max([least, *(LABEL_GAP + 4 + text_width(label) for label in labels)])


def words(x: float, y: float, content: object, *, class_: str = "t", anchor: str = "start") -> str:
    """Writes text at a place."""
    return tag("text", escape(str(content)), x=x, y=y, class_=class_, text_anchor=anchor)


def hint(content: str) -> str:
    """The text a browser shows when the pointer rests on a shape."""
    return tag("title", escape(content))


def line(points: Sequence[tuple[float, float]], *, class_: str) -> str:
    """Draws a line through points; nothing for fewer than two."""
    if len(points) < 2:
        return ""
    path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
    return tag("path", d=path, class_=class_)


def area(upper: Sequence[tuple[float, float]], lower: Sequence[tuple[float, float]], *, class_: str) -> str:
    """Fills the room between two lines."""
    if len(upper) < 2:
        return ""
    path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in [*upper, *reversed(lower)]) + "Z"
    return tag("path", d=path, class_=class_)


def y_axis(plot: Plot, *, values: Sequence[float], labels: Sequence[str]) -> str:
    """Draws a grid line and a label for each value."""
    parts = []
    for value, label in zip(values, labels, strict=True):
        y = plot.py(value)
        parts.append(line([(plot.left, y), (plot.right, y)], class_="grid"))
        parts.append(words(plot.left - LABEL_GAP, y + 4, label, anchor="end"))
    return "".join(parts)


def apart(
    ends: Sequence[tuple[float, str, int]], *, top: float, bottom: float, gap: float = 14.0
) -> list[tuple[float, str, int]]:
    """Moves labels at line ends `gap` px apart, from the top down, then up again where they run out of the plot."""
    placed: list[tuple[float, str, int]] = []
    for y, text, colour in sorted(ends):
        placed.append((max(y, placed[-1][0] + gap if placed else top), text, colour))
    limit = bottom
    for index in range(len(placed) - 1, -1, -1):
        y, text, colour = placed[index]
        placed[index] = (min(y, limit), text, colour)
        limit = placed[index][0] - gap
    return placed


def log_ticks(low: float, high: float, *, count: int = 7) -> list[float]:
    """Gives numbers from `low` to `high` for an axis of equal factors: 1, 2, 5 times powers of ten, or fewer."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1, 2, 5), (1, 3), (1,)):
        found = [f * 10.0**p for p in powers for f in factors if low * 0.999 <= f * 10.0**p <= high * 1.001]
        if len(found) <= count:
            break
    return found


def log_marks(low: float, high: float, *, plot: Plot, write: Callable[[float], str]) -> list[float]:
    """Gives as many marks of a log axis as have room for their labels side by side."""
    for count in (7, 5, 4, 3):
        marks = log_ticks(low, high, count=count)
        ends = [(plot.px(math.log10(mark)), text_width(write(mark)) / 2 + 4) for mark in marks]
        if all(a + half <= b - other for (a, half), (b, other) in pairwise(ends)):
            break
    return marks


def figure(parts: Iterable[str], *, width: float, height: float, label: str) -> str:
    """Puts parts together as one image with a text for those who cannot see it."""
    return tag(
        "svg", "".join(parts), viewBox=f"0 0 {width:g} {height:g}", role="img", aria_label=label, class_="figure"
    )


def standalone(svg: str) -> str:
    """Makes a file of its own of a figure."""
    style = f"<style>{STYLE}svg{{background:var(--card);font-family:system-ui,sans-serif}}</style>"
    head, _, rest = svg.partition(">")
    return f'{head} xmlns="http://www.w3.org/2000/svg">{style}{rest}\n'


def _value(value: object) -> str:
    return f"{value:.1f}".removesuffix(".0") if isinstance(value, float) else str(value)


LIGHT = (
    "--card:#fff;--ink:#1b2330;--soft:#5b6675;--faint:#e6e9ee;--band:#f3f5f8;--bad:#c9302c;"
    "--c1:#2563c9;--c2:#d9730d;--c3:#0b8a6a;--c4:#b0309b;--c5:#6b5bd6;--c6:#7d6a2f;"
)
_DARK = (
    "--card:#171c24;--ink:#e8ebf0;--soft:#9aa5b4;--faint:#2b323d;--band:#1e242e;--bad:#ff7b72;"
    "--c1:#6ea3ff;--c2:#ffa657;--c3:#3ecfa5;--c4:#f08be0;--c5:#a79bff;--c6:#d3bd72;"
)
STYLE = (
    f":root{{color-scheme:light dark;{LIGHT}}}@media (prefers-color-scheme:dark){{:root{{{_DARK}}}}}"
    f"svg text{{font-size:{FONT_PX}px;fill:var(--soft)}}"
    "svg .strong{fill:var(--ink);font-weight:600}"
    "svg .grid{stroke:var(--faint);fill:none}svg .axis{stroke:var(--soft);fill:none}"
    "svg .band{fill:var(--band)}svg .band.odd{fill:none}svg .mark{stroke:var(--soft);stroke-dasharray:2 4;fill:none}"
    "svg .diamond{fill:var(--soft)}svg .series{fill:none;stroke-width:2.2;stroke-linejoin:round}"
    "svg .dashed{stroke-dasharray:6 4;stroke-width:1.8}svg .dot{stroke:var(--card);stroke-width:1.2}"
    "svg .spread{opacity:.16;stroke:none}svg .inner{opacity:.3}svg .took{fill:var(--c1)}svg .idle{fill:var(--faint)}"
    "svg .failed{fill:var(--bad)}svg .cross{stroke:var(--card);stroke-width:1.6;fill:none}"
    "svg .reference{stroke:var(--ink);stroke-width:1.4;stroke-dasharray:5 4;fill:none}"
    "svg .halo{paint-order:stroke;stroke:var(--card);stroke-width:4px;stroke-linejoin:round}"
    "svg .s0{stroke:var(--ink)}svg .f0{fill:var(--ink)}svg .way1{stroke-dasharray:7 4}"
    "svg .way2{stroke-dasharray:10 3 2 3}svg .way3{stroke-dasharray:2 3}svg .title{font-size:15px}"
    "svg .ring{fill:none;stroke-width:1.8}"
    "svg .limit{stroke:var(--bad);stroke-width:1.4;stroke-dasharray:2 3;fill:none}svg .over{fill:var(--bad)}"
    "svg .tick{stroke:var(--ink);stroke-width:2.4;fill:none}"
    "svg .predicted{fill-opacity:.25;stroke-width:1.2;stroke-dasharray:3 2}"
    + "".join(f"svg .s{i}{{stroke:var(--c{i})}}svg .f{i}{{fill:var(--c{i})}}" for i in range(1, NUM_COLOURS + 1))
)
"""Colours of both themes, and what the classes of figures look like."""
