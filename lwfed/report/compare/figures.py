"""Draws a comparison: quality against rounds, and bytes and FLOPs per client, and memory in each stage."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from lwfed.formats import bytes_text, is_share, metric_title, number_text, percent_text
from lwfed.report.compare.budget import WRITE, Budget, Reach, reaches
from lwfed.report.compare.records import Comparison, Group, Point, Spread
from lwfed.report.compare.table import stage_memory
from lwfed.report.plots import (
    COLOURS,
    above,
    document,
    dots,
    label_ends,
    label_factors,
    label_rounds,
    label_values,
    legend_below,
    legend_columns,
    new_figure,
    png,
    styled,
    svg,
)
from lwfed.report.series import Stage

WIDTH, HEIGHT = 560, 340
LONGEST_LABEL = 24
"""Longest label in characters at the end of a line; if any is longer, all labels are in a legend."""
PLOT_HEIGHT = 240
"""Approximate height of a plot with names of stages above it."""
LOG_FROM = 6.0
"""Ratio of the highest to the lowest cost of groups above which the axis is logarithmic."""
Cost = Callable[[Point], float]
BUDGET_LINE: dict[str, Any] = {"color": COLOURS["bad"], "lw": 1.4, "ls": (0, (2, 3))}


@dataclass(frozen=True, slots=True)
class Style:
    """The style of a group; dashes and markers distinguish groups without colours.

    Attributes:
        colour: Its name in the palette.
        dash: Lengths of strokes and gaps, pixels; empty: a solid line.
        mark: matplotlib's marker.
    """

    colour: str
    dash: tuple[int, ...] = ()
    mark: str = "o"

    @property
    def line(self) -> dict[str, Any]:
        """The line as matplotlib's keywords."""
        return {"color": COLOURS[self.colour], "ls": (0, self.dash) if self.dash else "-", "marker": self.mark}


OWN_STYLES = {
    "end_to_end": Style("ink", (7, 4), "s"),
    "layerwise": Style("c1"),
    "progressive": Style("c2", (10, 3, 2, 3), "^"),
}
SPARE_STYLES = (Style("c4"), Style("c3", (2, 3), "s"), Style("c5", (10, 3, 2, 3)), Style("c6"))


def styles(groups: Sequence[Group]) -> dict[str, Style]:
    """Returns each group's style, by label: the first of a strategy has the strategy's own."""
    own, spare = dict(OWN_STYLES), itertools.cycle(SPARE_STYLES)
    return {group.label: own.pop(group.strategy) if group.strategy in own else next(spare) for group in groups}


def comparison_figures(comparison: Comparison, *, budgets: Sequence[Budget] = ()) -> dict[str, tuple[str, Figure]]:
    """Returns the four figures: name -> title and figure."""
    plots, height = Plots(comparison, budgets), _height(comparison)
    return {
        name: (title, _drawn(plots, draw, height=height, label=label.format(metric=plots.title)))
        for name, (title, label, draw) in PLOTS.items()
    }


def comparison_files(comparison: Comparison, *, budgets: Sequence[Budget] = ()) -> dict[str, bytes]:
    """Returns file name -> content: each figure, and `compare` with all four, as SVG and PNG."""
    figures = {name: figure for name, (_, figure) in comparison_figures(comparison, budgets=budgets).items()}
    figures["compare"] = _all_in_one(Plots(comparison, budgets), height=_height(comparison))
    files = {f"{name}.svg": document(svg(figure)).encode() for name, figure in figures.items()}
    return files | {f"{name}.png": png(figure) for name, figure in figures.items()}


class Plots:
    """Draws a comparison: each of its four plots fills an empty figure, or a part of one.

    Args:
        comparison: The comparison.
        budgets: Budgets per client to mark.
    """

    def __init__(self, comparison: Comparison, budgets: Sequence[Budget]) -> None:
        self.groups = comparison.groups
        self.budgets = budgets
        self.title = metric_title(comparison.metric)
        self._reached = [reach for budget in budgets for reach in reaches(comparison, budget)]
        self._write = percent_text if is_share(comparison.metric) else number_text
        self._limits = _quality_limits(comparison)
        self._lines = {label: style.line for label, style in styles(comparison.groups).items()}

    def rounds(self, figure: Any) -> None:
        """Draws quality over global rounds, with the stages in the background."""
        axes = figure.subplots()
        label_rounds(axes, _shared_stages(self.groups), last=max(group.last.round for group in self.groups))
        self._quality(axes, x=attrgetter("round"), reached=self._reached)
        long = max(len(group.label) for group in self.groups) > LONGEST_LABEL
        ends = []
        for group in self.groups:
            value = _evaluated(group.means)[-1][1].mean
            name = "" if long else f"{group.label} "
            ends.append((value, name + self._write(value), self._lines[group.label]["color"]))
        label_ends(axes, ends, height=PLOT_HEIGHT)
        if long:
            self._legend(figure)

    def moved(self, figure: Any) -> None:
        """Draws quality over bytes moved per client, up and down, without frozen blocks."""
        frozen = max(group.last.frozen_bytes for group in self.groups)
        what = "moved per client, up and down" + (f"; plus {bytes_text(frozen)} of frozen blocks" if frozen else "")
        self._spent(figure, "bytes", x=attrgetter("moved_bytes"), what=what)

    def computed(self, figure: Any) -> None:
        """Draws quality over FLOPs computed per client."""
        self._spent(figure, "flops", x=attrgetter("flops"), what="computed per client")

    def memory(self, figure: Any) -> None:
        """Draws the peak memory of each stage: bars for measurements, strokes for predictions.

        Groups with one stage are lines across the others' stages.
        """
        axes = figure.subplots()
        memory = {group.label: stage_memory(group) for group in self.groups}
        stages = sorted({item.stage for items in memory.values() for item in items})
        barred = [label for label, items in memory.items() if len(items) > 1 or len(stages) == 1]
        values = [v for items in memory.values() for item in items for v in (item.predicted, item.measured) if v]
        limits = [b for b in self.budgets if b.quantity == "memory" and b.amount < 2 * max(values)]
        high = 1.14 * max([*values, *(budget.amount for budget in limits)], default=1.0)
        wide, unit = 0.76 / max(1, len(barred)), bytes_text(high).lstrip("0123456789.")  # bars omit the unit
        ends: list[tuple[float, str, str]] = []
        for label, items in memory.items():
            line = self._lines[label]
            if label not in barred:
                value = items[0].measured or items[0].predicted or 0.0
                axes.axhline(value, lw=2.2, **line | {"marker": ""})
                ends.append((value, f"{label} {bytes_text(value)}", line["color"]))
                continue
            measured, predicted = [item.measured or 0 for item in items], [item.predicted or math.nan for item in items]
            x = np.array([stages.index(item.stage) for item in items])
            x = x + (barred.index(label) - (len(barred) - 1) / 2) * wide
            axes.bar(x, measured, 0.94 * wide, color=line["color"], label=label)
            axes.hlines(predicted, x - 0.5 * wide, x + 0.5 * wide, color=COLOURS["ink"], lw=2.4)
            for at, item in zip(x, items, strict=True) if len(stages) * len(barred) <= 9 else ():
                text = bytes_text(item.measured or item.predicted).removesuffix(unit)
                top = max(item.measured or 0, item.predicted or 0)
                axes.annotate(text, (at, top), xytext=(0, 5), textcoords="offset points", ha="center")
        for budget in limits:
            axes.axhline(budget.amount, **BUDGET_LINE)
            ends.append((budget.amount, f"budget {budget.text}", COLOURS["bad"]))
        axes.set_xlim(-0.5, len(stages) - 0.5)
        axes.set_xticks(range(len(stages)), stages)
        axes.set_xlabel("stage")
        axes.set_ylim(0, high)
        axes.set_title("peak memory per client; bars: measured", color=COLOURS["soft"], fontweight="normal")
        label_values(axes.yaxis, bytes_text, count=4)
        label_ends(axes, ends, height=PLOT_HEIGHT)
        if barred:
            stroke = Line2D([], [], color=COLOURS["ink"], lw=2.4, label="predicted")
            legend_below(figure, [*axes.containers, stroke], width=WIDTH)

    def _spent(self, figure: Any, quantity: str, *, x: Cost, what: str) -> None:
        """Draws quality over a cost, on a logarithmic axis if the groups' costs differ much."""
        axes = figure.subplots()
        reached = [reach for reach in self._reached if reach.budget.quantity == quantity]
        known = [x(point) for group in self.groups for point, _ in _evaluated(group.means)]
        whole = [x(group.last) for group in self.groups]
        budgets = {reach.budget.amount: reach.budget for reach in reached}
        shown = [*known, *(amount for amount in budgets if amount <= 1.3 * max(known))]
        if max(whole) > LOG_FROM * min(whole) and min(known) > 0:
            low, high = min(shown) / 1.15, max(shown) * 1.15
            axes.set_xscale("log")
            label_factors(axes.xaxis, WRITE[quantity], low=low, high=high)
            what += " (log scale)"
        else:
            low, high = 0.0, 1.04 * max(shown)
            label_values(axes.xaxis, WRITE[quantity])
        axes.set_xlim(low, high)
        axes.set_xlabel(what)
        self._quality(axes, x=x, reached=reached)
        for amount, budget in budgets.items():
            if amount in shown:
                axes.axvline(amount, **BUDGET_LINE)
                at = axes.transAxes.inverted().transform(axes.transData.transform((amount, 0)))[0]
                text, ha = f"budget {budget.text}", "right" if at > 0.7 else "center"
            else:
                amount, text, ha = high, f"budget {budget.text} →", "right"
            above(axes, amount, text, lift=4, ha=ha, color=COLOURS["bad"], fontweight="bold")
        self._legend(figure)

    def _quality(self, axes: Axes, *, x: Cost, reached: Sequence[Reach]) -> None:
        """Draws each group's mean, a band of one standard deviation, and the last round within each budget."""
        for group in self.groups:
            line = self._lines[group.label]
            known = _evaluated(group.means)
            at, means = [x(point) for point, _ in known], np.array([quality.mean for _, quality in known])
            if len(group.runs) > 1:
                stds = np.array([quality.std for _, quality in known])
                axes.fill_between(at, means - stds, means + stds, color=line["color"], alpha=0.16, lw=0)
            axes.plot(at, means, **line | dots(len(at), marker=line["marker"]), clip_on=False)
        for reach in reached:
            within = _evaluated(reach.group.means[: reach.rounds])
            if reach.next_spent is not None and within:
                point, quality = within[-1]
                colour = self._lines[reach.group.label]["color"]
                axes.plot(x(point), quality.mean, "o", ms=15, mfc="none", mec=colour, mew=1.8, clip_on=False)
        axes.set_ylim(*self._limits)
        label_values(axes.yaxis, self._write)
        axes.set_title(self.title, color=COLOURS["soft"], fontweight="normal", pad=23)

    def _legend(self, figure: Any) -> None:
        handles = [Line2D([], [], label=label, **line) for label, line in self._lines.items()]
        legend_below(figure, handles, width=WIDTH)


PLOTS: dict[str, tuple[str, str, Callable[[Plots, Any], None]]] = {
    "quality-rounds": ("Quality by rounds", "{metric} over global rounds", Plots.rounds),
    "quality-bytes": ("Quality by bytes moved", "{metric} over bytes moved per client", Plots.moved),
    "quality-flops": ("Quality by FLOPs computed", "{metric} over FLOPs computed per client", Plots.computed),
    "memory-stages": ("Peak memory in each stage", "Peak memory per client in each stage", Plots.memory),
}
"""Name -> title, description for people who cannot see it, and the method that draws it."""


@styled
def _drawn(plots: Plots, draw: Callable[[Plots, Any], None], *, height: float, label: str) -> Figure:
    figure = new_figure(WIDTH, height, label=label)
    draw(plots, figure)
    return figure


@styled
def _all_in_one(plots: Plots, *, height: float) -> Figure:
    figure = new_figure(2 * WIDTH + 24, 2 * height + 88, label="Comparison of strategies", pad=9)
    parts: Any = figure.subfigures(2, 2, wspace=0.03, hspace=0.03)
    for part, (title, _, draw) in zip(parts.flat, PLOTS.values(), strict=True):
        part.suptitle(title, x=0.01, ha="left", fontsize=15, fontweight="bold", color=COLOURS["ink"])
        draw(plots, part)
    return figure


def _height(comparison: Comparison) -> float:
    """Returns a figure's height, which grows with the rows of its legend."""
    labels = [group.label for group in comparison.groups]
    return HEIGHT + 17.0 * (math.ceil(len(labels) / legend_columns(labels, width=WIDTH)) - 1)


def _evaluated(points: Sequence[Point]) -> list[tuple[Point, Spread]]:
    """Returns the evaluated points with their quality."""
    return [(point, point.quality) for point in points if point.quality is not None]


def _quality_limits(comparison: Comparison) -> tuple[float, float]:
    found = [quality for group in comparison.groups for _, quality in _evaluated(group.means)]
    low, high = min(q.mean - (q.std or 0) for q in found), max(q.mean + (q.std or 0) for q in found)
    if is_share(comparison.metric):
        return 0.0, min(1.0, 1.08 * high) if high > 0 else 1.0
    room = 0.06 * (high - low) or 0.1 * abs(high) or 1.0
    return low - room, high + room


def _shared_stages(groups: Sequence[Group]) -> list[Stage]:
    """Returns the stages along the rounds, if all groups with several stages agree on them."""
    found = {tuple(point.stage for point in group.means) for group in groups}
    several = [numbers for numbers in found if len(set(numbers)) > 1]
    if len(several) != 1:
        return []
    (numbers,) = several
    firsts = {stage: numbers.index(stage) + 1 for stage in dict.fromkeys(numbers)}
    return [Stage(stage, first, first + numbers.count(stage) - 1) for stage, first in firsts.items()]
