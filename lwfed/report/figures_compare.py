"""The figures of a comparison: quality against rounds, bytes and FLOPs of a client, and its memory in each stage."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from lwfed.report.compare.budget import Budget, Reach
from lwfed.report.compare.records import Comparison, Group, Mean, Memory, Spread
from lwfed.report.compare.table import is_share, stage_memory
from lwfed.report.figures_rounds import Stage, rounds_plot, shade, stage_names
from lwfed.report.formats import flops_text, measure_text, memory_text, percent_text, traffic_text
from lwfed.report.svg import (
    Plot,
    apart,
    area,
    extent,
    figure,
    hint,
    line,
    log_marks,
    margin,
    round_ticks,
    tag,
    text_width,
    ticks,
    words,
    y_axis,
)
from lwfed.report.svg_labels import Box, labels_at_ends

WIDTH, HEIGHT = 560.0, 340.0
LOG_FROM = 6.0
"""Where the dearest group spends so many times what the cheapest does, the axis is one of equal factors."""
COLOURS = {"end_to_end": 0, "layerwise": 1, "progressive": 2}
OTHERS = (4, 3, 5, 6)
"""Colours of further groups."""
Text = Callable[[float], str]


@dataclass(frozen=True, slots=True)
class Style:
    """How a group is drawn: a colour, a dash and a mark, so that it is told apart without colours too."""

    colour: int
    dash: str
    mark: str


def styles(groups: Sequence[Group]) -> dict[str, Style]:
    """Gives each group's style, by label."""
    found: dict[str, Style] = {}
    spare = itertools.cycle(OTHERS)
    for group in groups:
        colour = COLOURS.get(group.strategy)
        if colour is None or any(style.colour == colour for style in found.values()):
            colour = next(spare)
        dash = {0: " way1", 2: " way2", 3: " way3", 5: " way2"}.get(colour, "")
        found[group.label] = Style(colour, dash, {0: "square", 2: "triangle", 3: "square"}.get(colour, "circle"))
    return found


def rounds_figure(comparison: Comparison, *, title: str, reaches: Sequence[Reach] = ()) -> str:
    """Draws quality over global rounds, with the stages behind it."""
    text = _metric_text(comparison)
    span = _quality_span(comparison)
    stages = _stages(comparison.groups)
    looks = styles(comparison.groups)
    lasts = [(group.label, _known(group.means)[-1][1].mean) for group in comparison.groups]
    ends = [(value, f"{label} {text(value)}", looks[label].colour) for label, value in lasts]
    right = max(14 + text_width(label, strong=True) for _, label, _ in ends)
    marks = ticks(*span)
    names = [text(mark) for mark in marks]
    last = max(group.last.round for group in comparison.groups)
    laid = stages or [Stage(1, 1, last)]
    plot = rounds_plot(laid, left=margin(names), top=48, right=WIDTH - right, bottom=HEIGHT - 48, y=span)
    plot = replace(plot, x=(0.5, last + 0.5))
    parts = [shade(plot, stages), stage_names(plot, stages) if stages else "", y_axis(plot, values=marks, labels=names)]
    parts.append(_frame(plot, y_title=title, x_title="global round"))
    parts += [words(plot.px(n), plot.bottom + 18, n, anchor="middle") for n in round_ticks(last)]
    for group in comparison.groups:
        parts.append(_curve(plot, group, look=looks[group.label], x=lambda mean: mean.at.round, text=text))
    parts += [
        _ring(plot, reach, colour=looks[reach.group.label].colour, x=lambda mean: mean.at.round) for reach in reaches
    ]
    placed = [(plot.py(value), label, colour) for value, label, colour in ends]
    for y, label, colour in apart(placed, top=plot.top, bottom=plot.bottom):
        parts.append(words(plot.right + 8, y + 4, label, class_=f"f{colour} strong"))
    return figure(parts, width=WIDTH, height=HEIGHT, label=f"{title} over global rounds")


def spent_figure(comparison: Comparison, quantity: str, *, title: str, reaches: Sequence[Reach] = ()) -> str:
    """Draws quality over what a client moved (`bytes`: up and down, frozen blocks apart) or computed (`flops`)."""
    spent: Callable[[Mean], float] = (
        (lambda mean: mean.at.moved_bytes) if quantity == "bytes" else (lambda mean: mean.at.flops)
    )
    write: Text = traffic_text if quantity == "bytes" else flops_text
    what = "moved by a client, up and down" if quantity == "bytes" else "computed by a client"
    frozen = max(group.last.frozen_bytes for group in comparison.groups)
    more = f"; frozen blocks, {traffic_text(frozen)}, apart" if quantity == "bytes" and frozen else ""
    text = _metric_text(comparison)
    span = _quality_span(comparison)
    known = [spent(mean) for group in comparison.groups for mean, _ in _known(group.means)]
    budgets = {reach.budget.amount: reach.budget for reach in reaches if reach.budget.quantity == quantity}
    totals = [spent(group.means[-1]) for group in comparison.groups]
    log = max(totals) > LOG_FROM * min(totals) and min(known) > 0
    scale: Callable[[float], float] = math.log10 if log else float
    shown = [*known, *(amount for amount in budgets if amount <= 1.3 * max(known))]
    low, high = (min(shown) / 1.15, max(shown) * 1.15) if log else (0.0, 1.04 * max(shown))
    marks = ticks(*span)
    names = [text(mark) for mark in marks]
    plot = Plot(margin(names), 34, WIDTH - 24, HEIGHT - 48, (scale(low), scale(high)), span)
    across = log_marks(low, high, plot=plot, write=write) if log else ticks(low, high, count=5)
    parts = [y_axis(plot, values=marks, labels=names)]
    parts.append(_frame(plot, y_title=title, x_title=what + more + (" (log scale)" if log else "")))
    parts += [words(plot.px(scale(mark)), plot.bottom + 18, write(mark), anchor="middle") for mark in across]
    looks = styles(comparison.groups)
    taken: list[Box] = []
    for amount, budget in budgets.items():
        parts.append(_limit(plot, scale(amount), budget, taken) if amount in shown else _beyond(plot, budget))
    for group in comparison.groups:
        look = looks[group.label]
        parts.append(
            _curve(plot, group, look=look, x=lambda mean: scale(spent(mean)), text=text, note=lambda m: write(spent(m)))
        )
    parts += [
        _ring(plot, reach, colour=looks[reach.group.label].colour, x=lambda mean: scale(spent(mean)))
        for reach in reaches
        if reach.budget.quantity == quantity
    ]
    ways = {
        group.label: [(plot.px(scale(spent(m))), plot.py(q.mean)) for m, q in _known(group.means)]
        for group in comparison.groups
    }
    for label, (x, y), anchor in labels_at_ends(plot, ways, width=WIDTH, taken=taken):
        parts.append(words(x, y, label, class_=f"f{looks[label].colour} strong halo", anchor=anchor))
    return figure(parts, width=WIDTH, height=HEIGHT, label=f"{title} over {what}")


def memory_figure(comparison: Comparison, *, budgets: Sequence[Budget] = ()) -> str:
    """Draws the peak memory of each stage: a bar for what was measured, a stroke for what was predicted.

    Groups of one stage stand as lines across the others' stages.
    """
    looks = styles(comparison.groups)
    memory = {group.label: stage_memory(group) for group in comparison.groups}
    numbers = sorted({item.stage for items in memory.values() for item in items})
    barred = [group for group in comparison.groups if len(memory[group.label]) > 1 or len(numbers) == 1]
    lined = [group for group in comparison.groups if group not in barred]
    limits = [budget for budget in budgets if budget.quantity == "memory"]
    values = [v for items in memory.values() for item in items for v in (item.predicted, item.measured) if v]
    high = 1.14 * max([*values, *(b.amount for b in limits if b.amount < 2 * max(values))], default=1.0)
    marks = ticks(0, high, count=4, base=1024)
    names = [memory_text(mark) for mark in marks]
    shown = [budget for budget in limits if budget.amount < high]
    beside = [*(group.label for group in lined), *("budget" for _ in shown)]
    right = max([14.0, *(14 + text_width(label, strong=True) for label in beside)])
    plot = Plot(margin([*names, "stage"]), 34, WIDTH - right, HEIGHT - 66, (0.0, float(len(numbers))), (0.0, high))
    parts = [y_axis(plot, values=marks, labels=names), _frame(plot, y_title="peak memory of a client", x_title="")]
    parts.append(words(plot.left - 8, plot.bottom + 18, "stage", anchor="end"))
    room = (plot.right - plot.left) / len(numbers)
    unit = names[-1].rpartition(" ")[2]
    wide = min(64.0, 0.76 * room / max(1, len(barred)))
    for index, stage in enumerate(numbers):
        parts.append(words(plot.px(index + 0.5), plot.bottom + 18, stage, anchor="middle"))
        for place, group in enumerate(barred):
            item = next((item for item in memory[group.label] if item.stage == stage), None)
            if item is None:
                continue
            left = plot.px(index + 0.5) + (place - len(barred) / 2) * wide + 1
            parts.append(
                _bar(
                    plot, item, left=left, wide=wide - 2, label=group.label, colour=looks[group.label].colour, unit=unit
                )
            )
    ends: list[tuple[float, str, int]] = []
    for group in lined:
        only = memory[group.label][0]
        value = only.measured or only.predicted or 0.0
        y, look = plot.py(value), looks[group.label]
        note = hint(f"{group.label}: measured {memory_text(only.measured)}, predicted {memory_text(only.predicted)}")
        across = line([(plot.left, y), (plot.right, y)], class_=f"series s{look.colour}{look.dash}")
        parts.append(tag("g", note + across))
        ends.append((y, f"{group.label}|{memory_text(value)}", look.colour))
    for budget in shown:
        y = plot.py(budget.amount)
        parts.append(line([(plot.left, y), (plot.right, y)], class_="limit"))
        ends.append((y, f"budget|{budget.text}", -1))
    for y, content, colour in apart(ends, top=plot.top, bottom=plot.bottom - 16, gap=32):
        style = "over strong" if colour < 0 else f"f{colour} strong"
        for row, part in enumerate(content.split("|")):
            parts.append(words(plot.right + 7, y + 4 + 14 * row, part, class_=style))
    left = plot.left
    for group in barred:
        parts.append(
            tag("rect", x=left, y=HEIGHT - 20, width=12, height=12, rx=2, class_=f"f{looks[group.label].colour}")
        )
        parts.append(words(left + 18, HEIGHT - 10, f"{group.label}, measured"))
        left += 18 + text_width(f"{group.label}, measured") + 16
    if barred:
        parts.append(line([(left, HEIGHT - 14), (left + 18, HEIGHT - 14)], class_="tick"))
        parts.append(words(left + 24, HEIGHT - 10, "predicted"))
    return figure(parts, width=WIDTH, height=HEIGHT, label="Peak memory of a client in each stage")


def composed(panels: Sequence[tuple[str, str]], *, columns: int = 2, label: str) -> str:
    """Puts figures of one size together as one, each under its title."""
    parts = []
    for index, (title, svg) in enumerate(panels):
        x, y = (index % columns) * (WIDTH + 24), (index // columns) * (HEIGHT + 44)
        inner = svg[svg.index(">") + 1 : svg.rindex("</svg>")]
        heading = words(6, 24, title, class_="strong title")
        parts.append(
            tag("g", heading + tag("g", inner, transform="translate(0 32)"), transform=f"translate({x:g} {y:g})")
        )
    wide, rows = min(columns, len(panels)), -(-len(panels) // columns)
    return figure(parts, width=wide * (WIDTH + 24) - 24, height=rows * (HEIGHT + 44), label=label)


def _frame(plot: Plot, *, y_title: str, x_title: str) -> str:
    """Draws the horizontal axis, and says what both axes are."""
    parts = [line([(plot.left, plot.bottom), (plot.right, plot.bottom)], class_="axis")]
    parts.append(words(6, 14, y_title))
    parts.append(words((plot.left + plot.right) / 2, plot.bottom + 38, x_title, anchor="middle"))
    return "".join(parts)


def _curve(
    plot: Plot,
    group: Group,
    *,
    look: Style,
    x: Callable[[Mean], float],
    text: Text,
    note: Callable[[Mean], str] | None = None,
) -> str:
    """Draws a group's mean, one deviation about it as a band, and a mark at each evaluated round."""
    known = _known(group.means)
    parts = []
    if all(quality.std is not None for _, quality in known):
        low, high = plot.y
        upper = [(plot.px(x(m)), plot.py(min(high, q.mean + (q.std or 0)))) for m, q in known]
        lower = [(plot.px(x(m)), plot.py(max(low, q.mean - (q.std or 0)))) for m, q in known]
        parts.append(area(upper, lower, class_=f"spread f{look.colour}"))
    parts.append(line([(plot.px(x(m)), plot.py(q.mean)) for m, q in known], class_=f"series s{look.colour}{look.dash}"))
    crowded = len(known) > 40
    for mean, quality in known:
        std = "" if quality.std is None else f" ± {text(quality.std)}"
        more = "" if note is None else f", {note(mean)}"
        told = hint(f"{group.label}, round {mean.at.round}{more}: {text(quality.mean)}{std}")
        parts.append(_mark(plot.px(x(mean)), plot.py(quality.mean), look, r=1.6 if crowded else 3.4, content=told))
    return "".join(parts)


def _mark(x: float, y: float, look: Style, *, r: float, content: str) -> str:
    style = f"dot f{look.colour}"
    if look.mark == "circle":
        return tag("circle", content, cx=x, cy=y, r=r, class_=style)
    if look.mark == "square":
        return tag("rect", content, x=x - r, y=y - r, width=2 * r, height=2 * r, class_=style)
    path = f"M{x:.1f} {y - 1.3 * r:.1f}L{x + 1.2 * r:.1f} {y + 0.9 * r:.1f}L{x - 1.2 * r:.1f} {y + 0.9 * r:.1f}Z"
    return tag("path", content, d=path, class_=style)


def _ring(plot: Plot, reach: Reach, *, colour: int, x: Callable[[Mean], float]) -> str:
    """Marks the last evaluated round that a budget pays for; nothing where it pays for all."""
    within = _known(reach.group.means[: reach.rounds])
    if reach.next_spent is None or not within:
        return ""
    mean, quality = within[-1]
    note = hint(f"{reach.group.label}, budget {reach.budget.text}: {reach.verdict}")
    return tag("circle", note, cx=plot.px(x(mean)), cy=plot.py(quality.mean), r=7.5, class_=f"ring s{colour}")


def _limit(plot: Plot, value: float, budget: Budget, taken: list[Box]) -> str:
    x, label = plot.px(value), f"budget {budget.text}"
    wide = text_width(label, strong=True)
    anchor, left = ("start", x + 6) if x + 6 + wide < WIDTH else ("end", x - 6 - wide)
    taken += [(left, plot.top - 2, left + wide, plot.top + 14), (x - 2, plot.top, x + 2, plot.bottom)]
    place = x + 6 if anchor == "start" else x - 6
    name = words(place, plot.top + 10, label, class_="over strong halo", anchor=anchor)
    return line([(x, plot.top), (x, plot.bottom)], class_="limit") + name


def _beyond(plot: Plot, budget: Budget) -> str:
    return words(plot.right, plot.top - 8, f"budget {budget.text} →", class_="over strong", anchor="end")


def _bar(plot: Plot, item: Memory, *, left: float, wide: float, label: str, colour: int, unit: str) -> str:
    """Draws a stage's memory; its number, in the unit of the axis, where there is room."""
    measured, predicted = item.measured, item.predicted
    parts = []
    note = hint(f"{label}, stage {item.stage}: measured {memory_text(measured)}, predicted {memory_text(predicted)}")
    if measured:
        y = plot.py(measured)
        parts.append(tag("rect", note, x=left, y=y, width=wide, height=plot.bottom - y, rx=2, class_=f"f{colour}"))
    if predicted:
        y = plot.py(predicted)
        parts.append(line([(left - 2, y), (left + wide + 2, y)], class_="tick"))
    top = max(value for value in (measured, predicted, 0.0) if value is not None)
    number, _, own = memory_text(measured or predicted).partition(" ")
    value = number if own == unit else f"{number} {own}"
    if text_width(value) <= wide:
        parts.append(words(left + wide / 2, plot.py(top) - 7, value, class_="t halo", anchor="middle"))
    return "".join(parts)


def _known(means: Sequence[Mean]) -> list[tuple[Mean, Spread]]:
    """Gives the rounds that were evaluated."""
    return [(mean, mean.quality) for mean in means if mean.quality is not None]


def _metric_text(comparison: Comparison) -> Text:
    return percent_text if is_share(comparison.metric) else measure_text


def _quality_span(comparison: Comparison) -> tuple[float, float]:
    found = [
        (mean.quality.mean, mean.quality.std or 0.0) for g in comparison.groups for mean in g.means if mean.quality
    ]
    if is_share(comparison.metric):
        high = max(mean + std for mean, std in found)
        return 0.0, min(1.0, 1.08 * high) if high > 0 else 1.0
    return extent(value for mean, std in found for value in (mean - std, mean + std))


def _stages(groups: Sequence[Group]) -> list[Stage]:
    """Lays the stages along the rounds, where all groups with several agree on them."""
    laid = []
    for group in groups:
        numbers = [mean.at.stage for mean in group.means]
        first = {stage: numbers.index(stage) for stage in dict.fromkeys(numbers)}
        laid.append([Stage(s, at + 1, at + numbers.count(s)) for s, at in first.items()])
    several = [stages for stages in laid if len(stages) > 1]
    return several[0] if several and all(stages == several[0] for stages in several) else []


def caption(comparison: Comparison) -> str:
    """Says what the lines and bands are."""
    counts = {len(group.tracks) for group in comparison.groups}
    if counts == {1}:
        return "One seed each."
    named = {
        group.label: f"n = {len(group.tracks)} (seed{'s' if len(group.tracks) > 1 else ''} "
        f"{', '.join(map(str, group.seeds))})"
        for group in comparison.groups
    }
    same = set(named.values())
    seeds = f"Each: {same.pop()}" if len(same) == 1 else "; ".join(f"{label}: {text}" for label, text in named.items())
    return f"Lines are means over seeds, bands one sample standard deviation. {seeds}."
