"""Figures of the clients: who took part, how their losses spread, what data they have."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence

from lwfed.report.figures_rounds import Stage, round_axis, rounds_plot, shade, stage_names
from lwfed.report.formats import count_text, number_text
from lwfed.report.svg import Plot, area, extent, figure, hint, line, margin, tag, ticks, words, y_axis
from lwfed.tracking.protocol import Record, finite


def participation_figure(run: Record, *, stages: Sequence[Stage], rounds: Sequence[Record]) -> str:
    """Draws who took part in which round, and the spread of the clients' losses below it, on one axis of rounds."""
    clients = sorted({*run["data"]["clients"], *(client for record in rounds for client in record["cohort"])})
    tall = 16.0 if len(clients) <= 20 else max(4.0, 320 / len(clients))
    width, top = 1140.0, 44.0
    bottom = top + tall * len(clients)
    left = margin(clients, least=92)
    plot = rounds_plot(stages, left=left, top=top, right=width - 58, bottom=bottom, y=(0.0, float(len(clients))))
    wide = plot.px(2) - plot.px(1)
    gap_x, gap_y = (2.0, 2.0) if wide > 8 and tall > 8 else (0.6 if wide > 3 else 0.0, 0.6)
    rows = {client: index for index, client in enumerate(clients)}
    every = math.ceil(14 / tall)
    parts = [stage_names(plot, stages)]
    parts += [
        words(plot.left - 8, top + tall * (index + 0.5) + 4, client, anchor="end")
        for client, index in rows.items()
        if index % every == 0
    ]
    for record in rounds:
        number = record["global_round"]
        for client, row in rows.items():
            x, y = plot.px(number - 0.5) + gap_x / 2, top + tall * row + gap_y / 2
            style, note = _state(record, client)
            title = hint(f"round {number}, {client}: {note}")
            w, h = max(0.8, wide - gap_x), tall - gap_y
            parts.append(tag("rect", title, x=x, y=y, width=w, height=h, rx=min(2.0, wide / 6), class_=style))
            if style == "failed" and wide > 8 and tall > 8:
                middle, r = (x + w / 2, y + h / 2), 3.0
                path = f"M{middle[0] - r:.1f} {middle[1] - r:.1f}l6 6m0 -6l-6 6"
                parts.append(tag("path", d=path, class_="cross"))
    left = plot.left
    for style, name in (("took", "took part"), ("idle", "not sampled"), ("failed", "failed")):
        parts.append(tag("rect", x=left, y=bottom + 12, width=12, height=12, rx=2, class_=style))
        parts.append(words(left + 18, bottom + 22, name))
        left += 110
    spread, height = _spread(stages, rounds, top=bottom + 62, left=plot.left, width=width)
    return figure([*parts, spread], width=width, height=height, label="Participation of clients and spread of losses")


def partition_figure(run: Record) -> str:
    """Draws how many examples each client has."""
    clients = dict(sorted(run["data"]["clients"].items()))
    tall = 20.0 if len(clients) <= 24 else max(5.0, 480 / len(clients))
    width, height = 560.0, tall * len(clients) + 12
    high = max([1, *clients.values()])
    right = width - margin([count_text(high)])
    plot = Plot(margin(clients, least=92), 4, right, height - 8, (0.0, float(high)), (0.0, 1.0))
    every = math.ceil(14 / tall)
    parts = []
    for index, (client, count) in enumerate(clients.items()):
        y = plot.top + tall * index
        note = hint(f"{client}: {count} examples")
        wide = max(1.0, plot.px(count) - plot.left)
        parts.append(tag("rect", note, x=plot.left, y=y + 1.5, width=wide, height=tall - 3, rx=2, class_="f3"))
        if index % every == 0:
            parts.append(words(plot.left - 8, y + tall / 2 + 4, client, anchor="end"))
            parts.append(words(plot.px(count) + 6, y + tall / 2 + 4, count_text(count)))
    return figure(parts, width=width, height=height, label="Number of examples of each client")


def _state(record: Record, client: str) -> tuple[str, str]:
    if client in (record.get("failed") or {}):
        return "failed", f"failed: {record['failed'][client]}"
    found = (record.get("clients") or {}).get(client)
    if found is None:
        return "idle", "not sampled"
    loss = f", loss {number_text(found['loss'])}" if finite(found.get("loss")) else ""
    return "took", f"took part, {count_text(found.get('num_examples', 0))} examples{loss}"


def _spread(
    stages: Sequence[Stage], rounds: Sequence[Record], *, top: float, left: float, width: float
) -> tuple[str, float]:
    """Draws least, middle half, mean and largest of the clients' losses; gives the drawing and where it ends."""
    found = []
    for record in rounds:
        losses = sorted(c["loss"] for c in (record.get("clients") or {}).values() if finite(c.get("loss")))
        if losses:
            quarter = statistics.quantiles(losses, n=4, method="inclusive") if len(losses) > 1 else losses * 3
            found.append((record["global_round"], losses, quarter))
    if not found:
        return "", top - 24
    bottom = top + 190
    span = extent(value for _, losses, _ in found for value in losses)
    plot = rounds_plot(stages, left=left, top=top, right=width - 58, bottom=bottom, y=span)
    marks = ticks(*span)
    parts = [
        words(plot.left, top - 10, "Training loss of the clients that took part", class_="strong"),
        shade(plot, stages),
        y_axis(plot, values=marks, labels=[number_text(mark) for mark in marks]),
        round_axis(plot),
    ]

    def at(pick: Callable[[Sequence[float], Sequence[float]], float]) -> list[tuple[float, float]]:
        return [(plot.px(number), plot.py(pick(losses, quarter))) for number, losses, quarter in found]

    parts.append(area(at(lambda losses, _: losses[-1]), at(lambda losses, _: losses[0]), class_="spread f1"))
    parts.append(area(at(lambda _, q: q[2]), at(lambda _, q: q[0]), class_="spread inner f1"))
    parts.append(line(at(lambda losses, _: statistics.fmean(losses)), class_="series s1"))
    for number, losses, _ in found:
        x = plot.px(number)
        mean = statistics.fmean(losses)
        note = hint(f"round {number}: mean {number_text(mean)}, {number_text(losses[0])} to {number_text(losses[-1])}")
        parts.append(line([(x, plot.py(losses[0])), (x, plot.py(losses[-1]))], class_="s1 spread-line"))
        parts.append(tag("circle", note, cx=x, cy=plot.py(mean), r=3.0 if len(found) < 60 else 1.6, class_="dot f1"))
    parts.append(tag("rect", x=plot.left, y=bottom + 30, width=20, height=10, class_="spread f1"))
    parts.append(words(plot.left + 26, bottom + 40, "least to largest"))
    parts.append(tag("rect", x=plot.left + 140, y=bottom + 30, width=20, height=10, class_="spread inner f1"))
    parts.append(words(plot.left + 166, bottom + 40, "middle half"))
    parts.append(line([(plot.left + 256, bottom + 36), (plot.left + 276, bottom + 36)], class_="series s1"))
    parts.append(words(plot.left + 282, bottom + 40, "mean"))
    return "".join(parts), bottom + 50
