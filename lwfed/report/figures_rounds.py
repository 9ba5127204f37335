"""The axis that a run's figures share: global rounds, with its stages laid along it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lwfed.report.svg import Plot, hint, line, round_ticks, tag, words
from lwfed.tracking.protocol import Record, stage_numbers


@dataclass(frozen=True, slots=True)
class Stage:
    """A stage on the axis of global rounds; `last < first` where it has no rounds."""

    number: int
    first: int
    last: int

    @property
    def rounds(self) -> int:
        """Number of rounds."""
        return self.last - self.first + 1


def stages_of(run: Record, stages: Sequence[Record], rounds: Sequence[Record]) -> list[Stage]:
    """Lays a run's stages along its global rounds, as far as they are recorded."""
    finished = {record["stage"]: int(record["rounds"]) for record in stages}
    result, first = [], 1
    for number in stage_numbers(run):
        recorded = sum(1 for record in rounds if record["stage"] == number)
        if number not in finished and not recorded:
            break
        count = finished.get(number, recorded)
        result.append(Stage(number, first, first + count - 1))
        first += count
    return result


def rounds_plot(
    stages: Sequence[Stage], *, left: float, top: float, right: float, bottom: float, y: tuple[float, float]
) -> Plot:
    return Plot(left, top, right, bottom, (0.5, max([1, *(stage.last for stage in stages)]) + 0.5), y)


def shade(plot: Plot, stages: Sequence[Stage]) -> str:
    """Draws a band for each trained stage."""
    parts = []
    for index, stage in enumerate(stage for stage in stages if stage.rounds):
        left, right = plot.px(stage.first - 0.5), plot.px(stage.last + 0.5)
        style = "band" if index % 2 == 0 else "band odd"
        height = plot.bottom - plot.top
        parts.append(tag("rect", x=left, y=plot.top, width=right - left, height=height, class_=style))
    return "".join(parts)


def stage_names(plot: Plot, stages: Sequence[Stage]) -> str:
    """Names the trained stages above a plot, and marks where stages without rounds were appended."""
    parts = []
    for stage in stages:
        if stage.rounds:
            left, right = plot.px(stage.first - 0.5), plot.px(stage.last + 0.5)
            name = f"stage {stage.number}" if right - left > 52 else str(stage.number)
            parts.append(words((left + right) / 2, plot.top - 8, name, anchor="middle"))
    untrained: dict[int, list[int]] = {}
    for stage in stages:
        if not stage.rounds:
            untrained.setdefault(stage.first, []).append(stage.number)
    for first, numbers in untrained.items():
        x = plot.px(first - 0.5)
        name = str(numbers[0]) if len(numbers) == 1 else f"{numbers[0]}–{numbers[-1]}"
        note = hint(f"stage {name}: no rounds, its blocks are appended untrained")
        parts.append(line([(x, plot.top - 22), (x, plot.bottom)], class_="mark"))
        diamond = f"M{x:.1f} {plot.top - 31:.1f}l5 5l-5 5l-5 -5z"
        parts.append(tag("path", note, d=diamond, class_="diamond"))
        place, anchor = (x - 9, "end") if x > plot.right - 130 else (x + 9, "start")
        parts.append(words(place, plot.top - 22, f"{name} untrained", anchor=anchor))
    return "".join(parts)


def round_axis(plot: Plot) -> str:
    """Draws the axis of global rounds below a plot."""
    parts = [line([(plot.left, plot.bottom), (plot.right, plot.bottom)], class_="axis")]
    for number in round_ticks(int(plot.x[1]), count=12 if plot.right - plot.left > 700 else 8):
        parts.append(words(plot.px(number), plot.bottom + 18, number, anchor="middle"))
    parts.append(words(plot.right + 14, plot.bottom + 18, "round"))
    return "".join(parts)
