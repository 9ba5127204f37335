"""Draws a comparison: quality against rounds, and bytes and FLOPs per client, and memory in each stage."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from lwfed.formats import bytes_text, flops_text, is_share, metric_title, number_text, percent_text
from lwfed.report.compare.budget import Budget, Reach, reaches
from lwfed.report.compare.records import Comparison, Group, Mean, Spread
from lwfed.report.compare.table import stage_memory
from lwfed.report.plots import (
    COLOURS,
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
OWN_COLOURS = {"end_to_end": "ink", "layerwise": "c1", "progressive": "c2"}
SPARE_COLOURS = ("c4", "c3", "c5", "c6")
DASHES = {"ink": (7, 4), "c2": (10, 3, 2, 3), "c3": (2, 3), "c5": (10, 3, 2, 3)}
MARKS = {"ink": "s", "c2": "^", "c3": "s"}


Draw = Callable[[Any], None]
"""Draws on an empty figure, or on part of one."""


@dataclass(frozen=True, slots=True)
class Style:
    """The style of a group; dashes and markers distinguish groups without colours.

    Attributes:
        colour: Its name in the palette.
        dash: Lengths of strokes and gaps, pixels; empty: a solid line.
        mark: matplotlib's marker.
    """

    colour: str
    dash: tuple[int, ...]
    mark: str

    @property
    def line(self) -> dict[str, Any]:
        """The line as matplotlib's keywords."""
        return {"color": COLOURS[self.colour], "ls": (0, self.dash) if self.dash else "-", "marker": self.mark}


def styles(groups: Sequence[Group]) -> dict[str, Style]:
    """Returns each group's style, by label."""
    found: dict[str, Style] = {}
    spare = itertools.cycle(SPARE_COLOURS)
    for group in groups:
        colour = OWN_COLOURS.get(group.strategy)
        if colour is None or any(style.colour == colour for style in found.values()):
            colour = next(spare)
        found[group.label] = Style(colour, DASHES.get(colour, ()), MARKS.get(colour, "o"))
    return found


def comparison_figures(comparison: Comparison, *, budgets: Sequence[Budget] = ()) -> dict[str, tuple[str, Figure]]:
    """Returns the four figures: name -> title and figure."""
    return {
        name: (title, _drawn(draw, height=_height(comparison), label=label))
        for name, (title, label, draw) in _plots(comparison, budgets).items()
    }


def comparison_files(comparison: Comparison, *, budgets: Sequence[Budget] = ()) -> dict[str, bytes]:
    """Returns file name -> content: each figure, and `compare` with all four, as SVG and PNG."""
    figures = {name: figure for name, (_, figure) in comparison_figures(comparison, budgets=budgets).items()}
    figures["compare"] = _all_in_one(comparison, budgets)
    files = {f"{name}.svg": document(svg(figure)).encode() for name, figure in figures.items()}
    return files | {f"{name}.png": png(figure) for name, figure in figures.items()}


def _plots(comparison: Comparison, budgets: Sequence[Budget]) -> dict[str, tuple[str, str, Draw]]:
    """Returns name -> title, description for people who cannot see it, and the function that draws it."""
    title = metric_title(comparison.metric)
    reached = [reach for budget in budgets for reach in reaches(comparison, budget)]
    return {
        "quality-rounds": (
            "Quality by rounds", f"{title} over global rounds",
            lambda figure: _draw_rounds(figure, comparison, title=title, reached=reached),
        ),
        "quality-bytes": (
            "Quality by bytes moved", f"{title} over bytes moved per client",
            lambda figure: _draw_spent(figure, comparison, "bytes", title=title, reached=reached),
        ),
        "quality-flops": (
            "Quality by FLOPs computed", f"{title} over FLOPs computed per client",
            lambda figure: _draw_spent(figure, comparison, "flops", title=title, reached=reached),
        ),
        "memory-stages": (
            "Peak memory in each stage", "Peak memory per client in each stage",
            lambda figure: _draw_memory(figure, comparison, budgets=budgets),
        ),
    }  # fmt: skip


@styled
def _drawn(draw: Draw, *, height: float, label: str) -> Figure:
    figure = new_figure(WIDTH, height, label=label)
    draw(figure)
    return figure


@styled
def _all_in_one(comparison: Comparison, budgets: Sequence[Budget]) -> Figure:
    figure = new_figure(2 * WIDTH + 24, 2 * _height(comparison) + 88, label="Comparison of strategies", pad=9)
    parts: Any = figure.subfigures(2, 2, wspace=0.03, hspace=0.03)
    for part, (title, _, draw) in zip(parts.flat, _plots(comparison, budgets).values(), strict=True):
        part.suptitle(title, x=0.01, ha="left", fontsize=15, fontweight="bold", color=COLOURS["ink"])
        draw(part)
    return figure


def _draw_rounds(figure: Any, comparison: Comparison, *, title: str, reached: Sequence[Reach]) -> None:
    """Draws quality over global rounds, with the stages in the background."""
    axes, looks, write = figure.subplots(), styles(comparison.groups), _metric_write(comparison)
    label_rounds(axes, _shared_stages(comparison.groups), last=max(group.last.round for group in comparison.groups))
    _draw_quality(axes, comparison, x=lambda mean: mean.at.round, title=title, reached=reached)
    ends, long = [], max(len(group.label) for group in comparison.groups) > LONGEST_LABEL
    for group in comparison.groups:
        value = _evaluated(group.means)[-1][1].mean
        name = "" if long else f"{group.label} "
        ends.append((value, name + write(value), COLOURS[looks[group.label].colour]))
    label_ends(axes, ends, height=PLOT_HEIGHT)
    if long:
        _legend(figure, comparison)


def _draw_spent(figure: Any, comparison: Comparison, quantity: str, *, title: str, reached: Sequence[Reach]) -> None:
    """Draws quality over bytes moved per client (up and down, without frozen blocks) or FLOPs computed per client."""

    def spent(mean: Mean) -> float:
        return mean.at.moved_bytes if quantity == "bytes" else mean.at.flops

    axes, groups = figure.subplots(), comparison.groups
    write = bytes_text if quantity == "bytes" else flops_text
    frozen = max(group.last.frozen_bytes for group in groups)
    what = "moved per client, up and down" if quantity == "bytes" else "computed per client"
    what += f"; plus {bytes_text(frozen)} of frozen blocks" if quantity == "bytes" and frozen else ""
    own = [reach for reach in reached if reach.budget.quantity == quantity]
    known = [spent(mean) for group in groups for mean, _ in _evaluated(group.means)]
    whole = [spent(group.means[-1]) for group in groups]
    budgets = {reach.budget.amount: reach.budget for reach in own}
    shown = [*known, *(amount for amount in budgets if amount <= 1.3 * max(known))]
    if max(whole) > LOG_FROM * min(whole) and min(known) > 0:
        low, high = min(shown) / 1.15, max(shown) * 1.15
        axes.set_xscale("log")
        label_factors(axes.xaxis, write, low=low, high=high)
        what += " (log scale)"
    else:
        low, high = 0.0, 1.04 * max(shown)
        label_values(axes.xaxis, write)
    axes.set_xlim(low, high)
    axes.set_xlabel(what)
    _draw_quality(axes, comparison, x=spent, title=title, reached=own)
    for amount, budget in budgets.items():
        inside = amount in shown
        if inside:
            axes.axvline(amount, color=COLOURS["bad"], lw=1.4, ls=(0, (2, 3)))
        late = not inside or axes.transAxes.inverted().transform(axes.transData.transform((amount, 0)))[0] > 0.7
        axes.annotate(
            f"budget {budget.text}" + ("" if inside else " →"), (amount if inside else high, 1),
            xycoords=axes.get_xaxis_transform(), xytext=(0, 4), textcoords="offset points",
            ha="right" if late else "center", color=COLOURS["bad"], fontweight="bold",
        )  # fmt: skip
    _legend(figure, comparison)


def _draw_memory(figure: Any, comparison: Comparison, *, budgets: Sequence[Budget]) -> None:
    """Draws the peak memory of each stage: bars for measurements, strokes for predictions.

    Groups with one stage are lines across the others' stages.
    """
    axes = figure.subplots()
    colours = {label: COLOURS[look.colour] for label, look in styles(comparison.groups).items()}
    memory = {group.label: stage_memory(group) for group in comparison.groups}
    stages = sorted({item.stage for items in memory.values() for item in items})
    barred = [label for label, items in memory.items() if len(items) > 1 or len(stages) == 1]
    values = [v for items in memory.values() for item in items for v in (item.predicted, item.measured) if v]
    limits = [budget for budget in budgets if budget.quantity == "memory" and budget.amount < 2 * max(values)]
    high = 1.14 * max([*values, *(budget.amount for budget in limits)], default=1.0)
    wide, unit = 0.76 / max(1, len(barred)), bytes_text(high).lstrip("0123456789.")  # bars omit the unit
    ends: list[tuple[float, str, str]] = []
    for label, items in memory.items():
        if label not in barred:
            value = items[0].measured or items[0].predicted or 0.0
            axes.axhline(value, lw=2.2, **styles(comparison.groups)[label].line | {"marker": ""})
            ends.append((value, f"{label} {bytes_text(value)}", colours[label]))
            continue
        for item in items:
            x = stages.index(item.stage) + (barred.index(label) - (len(barred) - 1) / 2) * wide
            top = max(item.measured or 0, item.predicted or 0)
            if item.measured:
                axes.bar(x, item.measured, 0.94 * wide, color=colours[label])
            if item.predicted:
                axes.hlines(item.predicted, x - 0.5 * wide, x + 0.5 * wide, color=COLOURS["ink"], lw=2.4)
            if len(stages) * len(barred) <= 9:
                text = bytes_text(item.measured or item.predicted).removesuffix(unit)
                axes.annotate(text, (x, top), xytext=(0, 5), textcoords="offset points", ha="center")
    for budget in limits:
        axes.axhline(budget.amount, color=COLOURS["bad"], lw=1.4, ls=(0, (2, 3)))
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
        legend_below(figure, [*(Patch(color=colours[label], label=label) for label in barred), stroke], width=WIDTH)


def _draw_quality(
    axes: Axes, comparison: Comparison, *, x: Callable[[Mean], float], title: str, reached: Sequence[Reach]
) -> None:
    """Draws each group's mean, a band of one standard deviation, and the last round within each budget."""
    looks, write = styles(comparison.groups), _metric_write(comparison)
    low, high = _quality_limits(comparison)
    for group in comparison.groups:
        known, look = _evaluated(group.means), looks[group.label]
        at, means = [x(mean) for mean, _ in known], [quality.mean for _, quality in known]
        stds = [quality.std for _, quality in known if quality.std is not None]
        if len(stds) == len(known):
            lower = [max(low, mean - std) for mean, std in zip(means, stds, strict=True)]
            upper = [min(high, mean + std) for mean, std in zip(means, stds, strict=True)]
            axes.fill_between(at, lower, upper, color=COLOURS[look.colour], alpha=0.16, lw=0)
        axes.plot(at, means, **look.line | dots(len(known), marker=look.mark), clip_on=False)
    for reach in reached:
        within = _evaluated(reach.group.means[: reach.rounds])
        if reach.next_spent is not None and within:
            mean, quality = within[-1]
            colour = COLOURS[looks[reach.group.label].colour]
            axes.plot(x(mean), quality.mean, "o", ms=15, mfc="none", mec=colour, mew=1.8, clip_on=False)
    axes.set_ylim(low, high)
    label_values(axes.yaxis, write)
    axes.set_title(title, color=COLOURS["soft"], fontweight="normal", pad=23)


def _legend(figure: Any, comparison: Comparison) -> None:
    handles = [Line2D([], [], label=label, **look.line) for label, look in styles(comparison.groups).items()]
    legend_below(figure, handles, width=WIDTH)


def _height(comparison: Comparison) -> float:
    """Returns a figure's height, which grows with the rows of its legend."""
    labels = [group.label for group in comparison.groups]
    return HEIGHT + 17.0 * (math.ceil(len(labels) / legend_columns(labels, width=WIDTH)) - 1)


def _evaluated(means: Sequence[Mean]) -> list[tuple[Mean, Spread]]:
    """Returns the evaluated rounds with their quality."""
    return [(mean, mean.quality) for mean in means if mean.quality is not None]


def _metric_write(comparison: Comparison) -> Callable[[float], str]:
    return percent_text if is_share(comparison.metric) else number_text


def _quality_limits(comparison: Comparison) -> tuple[float, float]:
    found = [
        (quality.mean, quality.std or 0.0) for group in comparison.groups for _, quality in _evaluated(group.means)
    ]
    low, high = min(mean - std for mean, std in found), max(mean + std for mean, std in found)
    if is_share(comparison.metric):
        return 0.0, min(1.0, 1.08 * high) if high > 0 else 1.0
    room = 0.06 * (high - low) or 0.1 * abs(high) or 1.0
    return low - room, high + room


def _shared_stages(groups: Sequence[Group]) -> list[Stage]:
    """Returns the stages along the rounds, if all groups with several stages agree on them."""
    found = []
    for group in groups:
        numbers = [mean.at.stage for mean in group.means]
        spans = [
            Stage(stage, numbers.index(stage) + 1, numbers.index(stage) + numbers.count(stage))
            for stage in dict.fromkeys(numbers)
        ]
        if len(spans) > 1:
            found.append(spans)
    return found[0] if found and all(spans == found[0] for spans in found) else []
