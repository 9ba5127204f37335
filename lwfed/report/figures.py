"""The figures of a run, drawn from its records: metrics, resources, participation, loss spread, partition."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lwfed.report.figures_clients import participation_figure, partition_figure
from lwfed.report.figures_rounds import Stage, round_axis, rounds_plot, shade, stage_names, stages_of
from lwfed.report.formats import (
    MODALITIES,
    flops_text,
    measure_text,
    memory_text,
    number_text,
    percent_text,
    traffic_text,
)
from lwfed.report.svg import (
    LABEL_GAP,
    NUM_COLOURS,
    Plot,
    apart,
    extent,
    figure,
    hint,
    line,
    margin,
    standalone,
    tag,
    text_width,
    ticks,
    words,
    y_axis,
)
from lwfed.tracking.protocol import Record, finite, stage_numbers


@dataclass(frozen=True, slots=True)
class Series:
    """One metric over global rounds; a value of None is a gap."""

    name: str
    label: str
    points: tuple[tuple[int, float | None], ...]
    dashed: bool = False


@dataclass(frozen=True, slots=True)
class Panel:
    """Metrics that share an axis."""

    key: str
    title: str
    series: tuple[Series, ...]
    share: bool


def panels_of(rounds: Sequence[Record]) -> list[Panel]:
    """Sorts a run's metrics into panels: recall each way, classification, loss, and what is left."""
    names = {name for record in rounds for name in record.get("metrics") or {}}
    found: dict[str, list[Series]] = {}
    titles: dict[str, str] = {}
    for name in sorted(names, key=_order):
        key, title, label = _place(name)
        titles.setdefault(key, title)
        points = tuple(
            (int(record["global_round"]), float(value) if finite(value) else None)
            for record in rounds
            if name in (record.get("metrics") or {})
            for value in [record["metrics"][name]]
        )
        if any(value is not None for _, value in points):
            found.setdefault(key, []).append(Series(name, label, points, dashed=name.startswith("federated/")))
    return [
        Panel(key, titles[key], tuple(series), share=key.startswith(("recall", "class", "zero")))
        for key, series in sorted(found.items(), key=lambda item: _panel_order(item[0]))
    ]


def metric_figure(panel: Panel, *, stages: Sequence[Stage]) -> str:
    """Draws a panel's metrics over global rounds."""
    width, height = 560.0, 310.0
    values = [value for series in panel.series for _, value in series.points if value is not None]
    high = max(values)
    span = (0.0, min(1.0, high * 1.12) if high > 0 else 1.0) if panel.share else extent(values)
    marks = ticks(*span)
    names = [percent_text(mark) if panel.share else number_text(mark) for mark in marks]
    text = percent_text if panel.share else measure_text
    lasts = [[value for _, value in series.points if value is not None][-1] for series in panel.series]
    right = max([58.0, *(11 + text_width(text(value), strong=True) for value in lasts)])
    plot = rounds_plot(stages, left=margin(names), top=44, right=width - right, bottom=height - 60, y=span)
    parts = [
        shade(plot, stages),
        stage_names(plot, stages),
        y_axis(plot, values=marks, labels=names),
        round_axis(plot),
    ]
    ends: list[tuple[float, str, int]] = []
    labels = list(dict.fromkeys(series.label for series in panel.series))
    colours = {label: index % NUM_COLOURS + 1 for index, label in enumerate(labels)}
    for series, last in zip(panel.series, lasts, strict=True):
        colour = colours[series.label]
        parts.append(_curve(plot, series, colour=colour, text=text))
        if not series.dashed or all(other.dashed for other in panel.series):
            ends.append((plot.py(last), text(last), colour))
    for y, content, colour in apart(ends, top=plot.top, bottom=plot.bottom):
        parts.append(words(plot.right + 7, y + 4, content, class_=f"f{colour} strong"))
    dashed = [("clients", None)] if any(series.dashed for series in panel.series) else []
    parts.append(_legend([*colours.items(), *dashed], y=height - 10, left=plot.left))
    return figure(parts, width=width, height=height, label=f"{panel.title} over global rounds")


RESOURCES: tuple[tuple[str, str, Callable[[Mapping[str, Any]], Any], Callable[[Mapping[str, Any]], Any], Any], ...] = (
    ("memory", "Peak memory of a client", lambda p: p.get("peak_bytes"), lambda m: m.get("peak_tensor_bytes"),
     memory_text),
    ("flops", "FLOPs of a training sample", lambda p: _sum(p, "forward_flops", "backward_flops"),
     lambda m: _sum(m, "forward_flops", "backward_flops"), flops_text),
    ("upload", "Upload, a client and round", lambda p: p.get("exchanged_bytes"), lambda m: m.get("bytes_up"),
     traffic_text),
    ("download", "Download, a client and round", lambda p: p.get("download_bytes", p.get("exchanged_bytes")),
     lambda m: m.get("bytes_down"), traffic_text),
)  # fmt: skip
"""Key, title, what the ledger predicts, what was measured, how it is written."""


def resource_figure(key: str, *, run: Record, stages: Sequence[Record]) -> str | None:
    """Draws a resource of each stage, predicted beside measured, against end to end; None where nothing is known."""
    _, title, predicted, measured, text = next(entry for entry in RESOURCES if entry[0] == key)
    done = {record["stage"]: record for record in stages}
    costs = {cost["stage"]: cost for cost in run.get("predicted") or ()}
    whole = predicted(run.get("end_to_end") or {})
    rows = []
    for stage in stage_numbers(run):
        record = done.get(stage, {})
        ledger = record.get("ledger") or {}
        rows.append(
            (
                stage,
                record.get("rounds"),
                predicted(ledger.get("predicted") or costs.get(stage) or {}),
                measured(ledger.get("measured") or {}),
            )
        )
    known = [value for row in rows for value in row[2:] if finite(value)] + ([whole] if finite(whole) else [])
    if not any(known):
        return None
    width, height = 560.0, 270.0
    high = 1.13 * max(known)
    marks = ticks(0, high, count=4, base=1024 if text is memory_text else 10)
    names = [text(mark) for mark in marks]
    plot = Plot(margin([*names, "stage"]), 12, width - 14, height - 52, (0.0, float(len(rows))), (0.0, high))
    parts = [y_axis(plot, values=marks, labels=names)]
    parts.append(words(plot.left - LABEL_GAP, plot.bottom + 18, "stage", anchor="end"))
    if finite(whole):
        y = plot.py(whole)
        parts.append(line([(plot.left, y), (plot.right, y)], class_="reference"))
        parts.append(line([(plot.left + 200, height - 14), (plot.left + 222, height - 14)], class_="reference"))
        parts.append(words(plot.left + 228, height - 10, f"end to end: {text(whole)}", class_="strong"))
    for index, (stage, rounds, expected, found) in enumerate(rows):
        middle = plot.px(index + 0.5)
        room = (plot.right - plot.left) / len(rows)
        wide = min(34.0, 0.34 * room)
        parts.append(words(middle, plot.bottom + 18, stage, anchor="middle"))
        if rounds == 0:
            parts.append(words(middle, plot.bottom - 8, "no rounds" if len(rows) < 8 else "–", anchor="middle"))
            continue
        for value, left, name in ((expected, middle - wide - 1.5, "predicted"), (found, middle + 1.5, "measured")):
            if finite(value):
                y = plot.py(value)
                note = hint(f"stage {stage}, {name}: {text(value)}")
                style = "f1 s1 predicted" if name == "predicted" else "f1"
                parts.append(tag("rect", note, x=left, y=y, width=wide, height=plot.bottom - y, rx=2, class_=style))
        top = max((value for value in (expected, found) if finite(value)), default=None)
        against = found if finite(found) and found > 0 else expected
        if top is not None and finite(whole) and finite(against) and against > 0:
            for factor in (f"{whole / against:.2f}×", f"{whole / against:.1f}×"):
                if text_width(factor, strong=True) <= room:
                    parts.append(words(middle, plot.py(top) - 6, factor, class_="strong halo", anchor="middle"))
                    break
    parts.append(line([(plot.left, plot.bottom), (plot.right, plot.bottom)], class_="axis"))
    for left, style, name in ((plot.left, "f1 s1 predicted", "predicted"), (plot.left + 100, "f1", "measured")):
        parts.append(tag("rect", x=left, y=height - 20, width=12, height=12, rx=2, class_=style))
        parts.append(words(left + 18, height - 10, name))
    return figure(parts, width=width, height=height, label=f"{title}, by stage, against end to end")


def figures(run: Record, *, stages: Sequence[Record], rounds: Sequence[Record]) -> dict[str, str]:
    """Draws every figure as a file of its own.

    Args:
        run: A RunRecord.
        stages: StageRecords, in order.
        rounds: RoundRecords, in order.

    Returns:
        File name (`loss.svg` ...) -> SVG document.
    """
    spans = stages_of(run, stages, rounds)
    drawn: dict[str, str | None] = {"partition": partition_figure(run)}
    if rounds:
        drawn |= {panel.key: metric_figure(panel, stages=spans) for panel in panels_of(rounds)}
        drawn["participation"] = participation_figure(run, stages=spans, rounds=rounds)
    drawn |= {f"resources-{entry[0]}": resource_figure(entry[0], run=run, stages=stages) for entry in RESOURCES}
    return {f"{name}.svg": standalone(svg) for name, svg in sorted(drawn.items()) if svg}


def _place(name: str) -> tuple[str, str, str]:
    """Gives a metric's panel, the panel's title and the metric's label in it."""
    side, _, rest = name.partition("/")
    if name.endswith("/loss"):
        return "loss", "Loss", {"train": "training", "federated": "test"}.get(side, side)
    pair, _, recall = rest.partition("/")
    if len(pair) == 3 and pair[1] == "2" and recall.startswith("R@"):
        source, target = MODALITIES.get(pair[0], pair[0]), MODALITIES.get(pair[2], pair[2])
        return f"recall-{pair}", f"{source.capitalize()} to {target} recall", recall
    if rest in ("accuracy", "precision", "recall", "f1"):
        return "classification", "Classification (macro averages)", rest.replace("f1", "F1")
    if rest.startswith("zero_shot"):
        return "zero-shot", "Zero-shot classification", rest.rpartition("/")[2]
    return "other-" + name.replace("/", "-"), name, name


def _order(name: str) -> tuple[int, str, int, str]:
    side = {"test": 0, "federated": 2}.get(name.partition("/")[0], 1)
    recall = name.rpartition("R@")[2]
    return (side, name.partition("R@")[0], int(recall) if recall.isdigit() else 0, name)


def _panel_order(key: str) -> tuple[int, str]:
    # the task first, loss next, then what is left; text to image before image to text
    ranks = ("recall-t2", "recall-", "classification", "zero-shot", "loss")
    return (next((rank for rank, start in enumerate(ranks) if key.startswith(start)), len(ranks)), key)


def _curve(plot: Plot, series: Series, *, colour: int, text: Callable[[float], str]) -> str:
    parts, run = [], list[tuple[float, float]]()
    style = f"series s{colour}" + (" dashed" if series.dashed else "")
    for number, value in [*series.points, (0, None)]:
        if value is None:
            parts.append(line(run, class_=style))
            run = []
        else:
            run.append((plot.px(number), plot.py(value)))
    crowded = len(series.points) > 45
    for number, value in series.points:
        if value is not None:
            note = hint(f"round {number}, {series.name}: {text(value)}")
            x, y, r = plot.px(number), plot.py(value), 1.6 if crowded else 3.2
            parts.append(tag("circle", note, cx=x, cy=y, r=r, class_=f"dot f{colour}"))
    return "".join(parts)


def _legend(entries: Sequence[tuple[str, int | None]], *, y: float, left: float) -> str:
    """Writes names beside their colours; without a colour: what a dashed line is."""
    parts, x = [], left
    for label, colour in entries:
        style = "series reference dashed" if colour is None else f"series s{colour}"
        parts.append(line([(x, y - 4), (x + 20, y - 4)], class_=style))
        parts.append(words(x + 26, y, label))
        x += 26 + text_width(label) + 18
    return "".join(parts)


def _sum(values: Mapping[str, Any], *keys: str) -> float | None:
    known = [values[key] for key in keys if finite(values.get(key))]
    return sum(known) if len(known) == len(keys) else None
