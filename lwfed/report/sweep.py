"""A sweep's page: its trials in a table, the best value over trials, and the value over each key."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from markupsafe import Markup
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from lwfed.formats import metric_title, number_text, score_text
from lwfed.report.pages import page
from lwfed.report.plots import COLOURS, document, label_factors, label_values, new_figure, png, styled, svg

WIDTH, HEIGHT = 560, 300


@dataclass(frozen=True, slots=True)
class TrialRow:
    """A trial.

    Attributes:
        number: Its number in the study.
        status: `finished`, `stopped early`, `failed`, `running` or `waiting`.
        values: Key -> its value.
        value: The metric; of a trial that did not finish, the last known.
        run_id: Its run, without the seed.
        metrics: All metrics of its last round.
        reason: Why it did not finish.
        seconds: How long it took.
    """

    number: int
    status: str
    values: Mapping[str, Any]
    value: float | None
    run_id: str
    metrics: Mapping[str, float]
    reason: str | None
    seconds: float | None


@dataclass(frozen=True, slots=True)
class SweepResult:
    """A sweep's trials and its best one.

    Attributes:
        name: The study's name.
        metric: The metric that decides.
        maximise: Whether larger values are better.
        keys: The keys that vary.
        rows: The trials, in order.
        log_keys: The keys with a logarithmic range.
    """

    name: str
    metric: str
    maximise: bool
    keys: tuple[str, ...]
    rows: tuple[TrialRow, ...]
    log_keys: frozenset[str] = frozenset()

    @property
    def ranked(self) -> list[TrialRow]:
        """The finished trials, best first; then the others that have a value; then the rest."""
        sign = -1 if self.maximise else 1

        def rank(row: TrialRow) -> tuple[Any, ...]:
            value = math.inf if row.value is None else sign * row.value
            return row.status != "finished", value, row.number

        return sorted(self.rows, key=rank)

    @property
    def best(self) -> TrialRow | None:
        """The best finished trial."""
        ranked = self.ranked
        return ranked[0] if ranked and ranked[0].status == "finished" else None

    def to_values(self) -> dict[str, Any]:
        """Returns the sweep as plain values."""
        best = self.best
        return {
            "name": self.name,
            "metric": self.metric,
            "best": None if best is None else asdict(best),
            "trials": [asdict(row) for row in self.ranked],
        }


def setting_text(value: Any) -> str:
    """Returns a key's value as people read it."""
    return number_text(value) if isinstance(value, float) else str("" if value is None else value)


def sweep_figures(result: SweepResult) -> dict[str, tuple[str, Figure]]:
    """Returns the figures: name -> title and figure. There is one of all trials, and one per key."""
    figures = {"trials": ("Trials", _history(result))}
    for key in result.keys:
        figures[f"key-{key}"] = (key, _over(result, key))
    return figures


def sweep_files(result: SweepResult, *, command: str, test_metrics: Sequence[str]) -> dict[str, bytes]:
    """Returns file name -> content: sweep.html, and each figure as SVG and PNG."""
    figures = sweep_figures(result)
    files = {f"{name}.svg": document(svg(figure)).encode() for name, (_, figure) in figures.items()}
    files |= {f"{name}.png": png(figure) for name, (_, figure) in figures.items()}
    html = page(
        "sweep.html",
        result=result,
        title=metric_title(result.metric),
        score=score_text,
        setting=setting_text,
        test_metrics=[(name, metric_title(name, short=True)) for name in test_metrics],
        command=command,
        figures=[(heading, Markup(svg(figure))) for heading, figure in figures.values()],
    )
    return files | {"sweep.html": html.encode()}


@styled
def _history(result: SweepResult) -> Figure:
    """Draws each trial's value over its number, and the best so far."""
    figure = new_figure(WIDTH, HEIGHT, label=f"{metric_title(result.metric)} of each trial, and the best so far")
    axes = figure.subplots()
    known = [row for row in result.rows if row.value is not None and row.status != "running"]
    best, line = None, []
    for row in known:
        if row.status == "finished" and row.value is not None:
            better = max if result.maximise else min
            best = row.value if best is None else better(best, row.value)
        line.append(math.nan if best is None else best)
    axes.step([row.number for row in known], line, where="post", color=COLOURS["c1"], label="best so far")
    _points(axes, [row.number for row in known], known)
    axes.set_xlabel("trial")
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    label_values(axes.yaxis, partial(score_text, result.metric))
    axes.legend(loc="best")
    return figure


@styled
def _over(result: SweepResult, key: str) -> Figure:
    """Draws the metric over the values of a key: on a number line where they are numbers, else a column each."""
    figure = new_figure(WIDTH, HEIGHT, label=f"{metric_title(result.metric)} over {key}")
    axes = figure.subplots()
    known = [row for row in result.rows if row.value is not None and row.status != "running"]
    values = [row.values[key] for row in known]
    if values and all(isinstance(value, int | float) for value in values):
        low, high = min(values), max(values)
        if key in result.log_keys:
            axes.set_xscale("log")
            label_factors(axes.xaxis, number_text, low=low / 1.2, high=high * 1.2)
        else:
            label_values(axes.xaxis, number_text)
        x = values
    else:
        names = list(dict.fromkeys(map(str, values)))
        axes.set_xticks(range(len(names)), names)
        axes.set_xlim(-0.6, len(names) - 0.4)
        x = [names.index(str(value)) for value in values]
    _points(axes, x, known)
    axes.set_xlabel(key)
    label_values(axes.yaxis, partial(score_text, result.metric))
    return figure


def _points(axes: Any, x: Sequence[float], rows: Sequence[TrialRow]) -> None:
    """Draws finished trials filled, and those that were stopped early hollow."""
    for status, face in (("finished", COLOURS["c1"]), ("stopped early", COLOURS["card"])):
        chosen = [(at, row.value) for at, row in zip(x, rows, strict=True) if row.status == status]
        if chosen:
            axes.plot(
                *zip(*chosen, strict=True), "o", color=face, markeredgecolor=COLOURS["c1"], label=status, zorder=3
            )
