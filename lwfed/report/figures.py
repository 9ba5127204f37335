"""Draws a run's figures from its records: metrics, resources, participation and losses of clients, partition."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, PathPatch
from matplotlib.path import Path

from lwfed.formats import bytes_text, count_text, factor_text, finite, flops_text, number_text, percent_text
from lwfed.report.ledger import Row, ledger_rows
from lwfed.report.plots import (
    COLOURS,
    SERIES,
    dots,
    label_ends,
    label_rounds,
    label_values,
    legend_below,
    new_figure,
    styled,
    svg,
)
from lwfed.report.series import Panel, Stage, panels_of, stages_of
from lwfed.types.records import RunRecord, StageRecord
from lwfed.types.round_records import RoundRecord

RESOURCES = {
    "memory": ("memory", "Peak memory per client", bytes_text),
    "flops": ("flops", "FLOPs per training sample", flops_text),
    "up": ("upload", "Upload per client per round", bytes_text),
    "down": ("download", "Download per client per round", bytes_text),
}
"""Quantity of the ledger -> its figure's name and title, and its format."""


class Drawing(NamedTuple):
    """A figure: its title and its SVG element."""

    title: str
    svg: str


def draw_run(run: RunRecord, *, stages: Sequence[StageRecord], rounds: Sequence[RoundRecord]) -> dict[str, Drawing]:
    """Draws all figures that a run's records allow.

    Args:
        run: A RunRecord.
        stages: StageRecords, in order.
        rounds: RoundRecords, in order.

    Returns:
        Name -> drawing: a panel of metrics by its key, `resources-QUANTITY`, `participation` and `partition`.
    """
    spans, rows = stages_of(run, stages, rounds), ledger_rows(run, stages)
    drawn = {panel.key: Drawing(panel.title, svg(metric_figure(panel, stages=spans))) for panel in panels_of(rounds)}
    for key, (name, title, _) in RESOURCES.items():
        figure = resource_figure(key, rows)
        if figure is not None:
            drawn[f"resources-{name}"] = Drawing(title, svg(figure))
    if rounds:
        figure = participation_figure(run, stages=spans, rounds=rounds)
        drawn["participation"] = Drawing("Participation of clients", svg(figure))
    return drawn | {"partition": Drawing("Training examples per client", svg(partition_figure(run)))}


@styled
def metric_figure(panel: Panel, *, stages: Sequence[Stage]) -> Figure:
    """Draws a panel's metrics over global rounds; averages over clients' held-out shares are dashed."""
    write = percent_text if panel.share else number_text
    figure = new_figure(560, 310, label=f"{panel.title} over global rounds")
    axes = figure.subplots()
    label_rounds(axes, stages, last=max([1, *(stage.last for stage in stages)]))
    colours = dict(zip(dict.fromkeys(series.label for series in panel.series), SERIES * 9, strict=False))
    for series in panel.series:
        numbers, values = zip(*series.points, strict=True)
        axes.plot(
            numbers, [math.nan if value is None else value for value in values], color=colours[series.label],
            ls="--" if series.held_out else "-", lw=1.8 if series.held_out else 2.2, clip_on=False,
            **dots(len(numbers)),
        )  # fmt: skip
    if panel.share:
        high = max(value for series in panel.series for _, value in series.points if value is not None)
        axes.set_ylim(0, min(1.0, 1.12 * high) if high > 0 else 1.0)
    label_values(axes.yaxis, write)
    named = [series for series in panel.series if not series.held_out] or panel.series
    label_ends(axes, [(series.last, write(series.last), colours[series.label]) for series in named], height=220)
    handles = [Line2D([], [], color=colour, label=label) for label, colour in colours.items()]
    if any(series.held_out for series in panel.series):
        handles.append(Line2D([], [], color=COLOURS["ink"], lw=1.8, ls="--", label="clients"))
    legend_below(figure, handles)
    return figure


@styled
def resource_figure(key: str, rows: Sequence[Row]) -> Figure | None:
    """Draws a quantity per stage, predicted and measured, against end to end; None if nothing is known."""
    _, title, write = RESOURCES[key]
    *staged, last = rows
    whole = last["predicted"][key]
    pairs = [(row["predicted"][key], row["measured"][key]) for row in staged]
    known = [value for pair in [*pairs, (whole,)] for value in pair if finite(value)]
    if not any(known):
        return None
    figure = new_figure(560, 270, label=f"{title}, by stage, against end to end")
    axes = figure.subplots()
    looks: list[dict[str, Any]] = [
        {"label": "predicted", "fc": (SERIES[0], 0.25), "ec": SERIES[0], "ls": (0, (3, 2))},
        {"label": "measured", "fc": SERIES[0], "ec": SERIES[0]},
    ]
    for index, (row, pair) in enumerate(zip(staged, pairs, strict=True)):
        if row["rounds"] == 0:
            axes.text(index, 0.04 * max(known), "no rounds" if len(rows) < 9 else "–", ha="center")
            continue
        for side, (value, look) in enumerate(zip(pair, looks, strict=True)):
            if finite(value):
                axes.bar(index + 0.36 * side - 0.18, value, 0.33, **look)
        top = max((value for value in pair if finite(value)), default=None)
        ours = pair[1] if finite(pair[1]) and pair[1] > 0 else pair[0]
        if top is not None and finite(whole) and finite(ours) and ours > 0 and len(rows) <= 13:
            axes.annotate(
                factor_text(whole / ours), (index, top), xytext=(0, 5), textcoords="offset points", ha="center",
                color=COLOURS["ink"], fontweight="bold", fontsize=12 if len(rows) < 9 else 10,
            )  # fmt: skip
    handles: list[Any] = [Patch(**look) for look in looks]
    if finite(whole):
        line: dict[str, Any] = {"color": COLOURS["ink"], "lw": 1.4, "ls": (0, (5, 4))}
        axes.axhline(whole, **line)
        handles.append(Line2D([], [], label=f"end to end: {write(whole)}", **line))
    axes.set_xlim(-0.6, len(staged) - 0.4)
    axes.set_xticks(range(len(staged)), [row["stage"] for row in staged])
    axes.set_xlabel("stage")
    axes.set_ylim(0, 1.13 * max(known))
    label_values(axes.yaxis, write, count=4)
    legend_below(figure, handles)
    return figure


@styled
def participation_figure(run: RunRecord, *, stages: Sequence[Stage], rounds: Sequence[RoundRecord]) -> Figure:
    """Draws which clients took part in which round and, below it, the spread of their losses."""
    clients = sorted({*run.data.clients, *(client for record in rounds for client in record.cohort)})
    tall = 16.0 if len(clients) <= 20 else max(4.0, 320 / len(clients))
    losses = _losses(rounds)
    below = [230] if losses else []
    height = tall * len(clients) + 60
    figure = new_figure(1140, height + sum(below), label="Participation of clients and spread of losses", gap=0.08)
    last = max([1, *(stage.last for stage in stages)])
    above, *rest = figure.subplots(1 + len(below), height_ratios=[height, *below], squeeze=False)[:, 0]
    label_rounds(above, stages, last=last)
    _cells(above, clients, rounds, every=math.ceil(14 / tall), narrow=last > 100 or tall < 8)
    for axes in rest:
        above.set_xlabel("")
        above.set_xticks([])
        label_rounds(axes, stages, last=last, names=False)
        axes.set_title("Training loss of the clients that took part")
        _spread(axes, losses)
        label_values(axes.yaxis, number_text)
    return figure


@styled
def partition_figure(run: RunRecord) -> Figure:
    """Draws the number of examples per client."""
    clients = dict(sorted(run.data.clients.items()))
    tall = 20.0 if len(clients) <= 24 else max(5.0, 480 / len(clients))
    every = math.ceil(14 / tall)
    figure = new_figure(560, tall * len(clients) + 12, label="Number of examples per client")
    axes = figure.subplots()
    bars = axes.barh(range(len(clients)), list(clients.values()), height=0.85, color=SERIES[2])
    counts = [count_text(count) if index % every == 0 else "" for index, count in enumerate(clients.values())]
    axes.bar_label(bars, counts, padding=6)
    axes.set_yticks(range(0, len(clients), every), list(clients)[::every])
    axes.set_ylim(len(clients) - 0.5, -0.5)
    axes.set_xlim(0, max([1, *clients.values()]))
    axes.set_xticks([])
    axes.spines["bottom"].set_visible(False)
    axes.grid(visible=False)
    return figure


def _cells(axes: Axes, clients: Sequence[str], rounds: Sequence[RoundRecord], *, every: int, narrow: bool) -> None:
    """Draws one cell per client and round: took part, failed, or not sampled."""
    kinds = {"took part": SERIES[0], "not sampled": COLOURS["faint"], "failed": COLOURS["bad"]}
    cells: dict[str, list[tuple[int, int]]] = {kind: [] for kind in kinds}
    for record in rounds:
        for row, client in enumerate(clients):
            failed, trained = client in record.failed, client in record.clients
            kind = "failed" if failed else "took part" if trained else "not sampled"
            cells[kind].append((record.global_round, row))
    corners = [(-0.48, -0.44), (0.48, -0.44), (0.48, 0.44), (-0.48, 0.44), (-0.48, -0.44)]
    for kind, colour in kinds.items():
        if cells[kind]:
            boxes = [Path([(x + dx, y + dy) for dx, dy in corners], closed=True) for x, y in cells[kind]]
            axes.add_patch(PathPatch(Path.make_compound_path(*boxes), color=colour, lw=0))
    if cells["failed"] and not narrow:
        axes.plot(*zip(*cells["failed"], strict=True), "x", color=COLOURS["card"], ms=6, mec=COLOURS["card"], mew=1.6)
    axes.set_ylim(len(clients) - 0.5, -0.5)
    axes.set_yticks(range(0, len(clients), every), clients[::every])
    axes.grid(visible=False)
    axes.spines["bottom"].set_visible(False)
    handles = [Patch(color=colour, label=kind) for kind, colour in kinds.items()]
    axes.legend(handles=handles, loc="upper left", bbox_to_anchor=(0, 0), borderaxespad=0.7, ncols=len(kinds))


def _spread(axes: Axes, losses: Sequence[tuple[int, list[float]]]) -> None:
    """Draws the minimum, middle half, mean and maximum of the clients' losses in each round."""
    numbers = [number for number, _ in losses]
    low, lower, upper, high = np.transpose([np.quantile(values, (0, 0.25, 0.75, 1)) for _, values in losses])
    blue: dict[str, Any] = {"color": SERIES[0], "lw": 0}
    axes.fill_between(numbers, low, high, alpha=0.16, label="least to largest", **blue)
    axes.fill_between(numbers, lower, upper, alpha=0.3, label="middle half", **blue)
    axes.vlines(numbers, low, high, color=SERIES[0], lw=1, alpha=0.45)
    means = [np.mean(values) for _, values in losses]
    axes.plot(numbers, means, color=SERIES[0], label="mean", **dots(len(numbers)))
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), borderaxespad=0.5, ncols=3)


def _losses(rounds: Sequence[RoundRecord]) -> list[tuple[int, list[float]]]:
    """Returns the clients' known losses in each round that has any."""
    found = [
        (record.global_round, [client.loss for client in record.clients.values() if finite(client.loss)])
        for record in rounds
    ]
    return [(number, values) for number, values in found if values]
