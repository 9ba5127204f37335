"""Laws of a run's figures: what is in the records is in the drawing, and nothing is cut, hidden or by chance."""

from __future__ import annotations

import io
import math
import re
import statistics
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any
from xml.etree import ElementTree

import matplotlib
import pytest
from matplotlib.figure import Figure
from PIL import Image

from lwfed.report.figures import (
    Drawing,
    draw_run,
    metric_figure,
    participation_figure,
    partition_figure,
    resource_figure,
)
from lwfed.report.ledger import ledger_rows
from lwfed.report.pages import DARK, LIGHT, PALETTE, STYLE
from lwfed.report.plots import COLOURS, document, legend_columns, png, round_ticks, svg
from lwfed.report.series import panels_of, stages_of
from tests.records import of_json
from tests.unit.report.texts import check_texts

Record = dict[str, Any]
Records = tuple[Record, list[Record], list[Record]]
Make = Callable[..., Records]
OTHER_SHAPES: list[Record] = [
    {},
    {"objective": "supervised", "rounds": (3, 4)},
    {"rounds": (5,) * 12, "num_clients": 30},
    {"rounds": (4, 0)},
    {"rounds": (1,), "num_clients": 1},
]


def figures_of(run: Record, stages: list[Record], rounds: list[Record]) -> Iterator[Figure]:
    spans, rows = of_json(stages_of)(run, stages, rounds), of_json(ledger_rows)(run, stages)
    yield from (metric_figure(panel, stages=spans) for panel in of_json(panels_of)(rounds))
    yield from filter(None, (resource_figure(key, rows) for key in ("memory", "flops", "up", "down")))
    yield of_json(participation_figure)(run, stages=spans, rounds=rounds)
    yield of_json(partition_figure)(run)


def drawn(run: Record, stages: list[Record], rounds: list[Record]) -> dict[str, Drawing]:
    return of_json(draw_run)(run, stages=stages, rounds=rounds)


def test_a_panel_draws_every_metric_with_its_values_and_gaps(make_records: Make) -> None:
    run, stages, rounds = make_records(objective="supervised", rounds=(3, 4))
    rounds[1]["metrics"]["test/loss"] = math.nan
    for panel in of_json(panels_of)(rounds):
        axes = metric_figure(panel, stages=of_json(stages_of)(run, stages, rounds)).axes[0]
        lines = [line for line in axes.lines if len(line.get_xdata()) > 2]
        assert len(lines) == len(panel.series)
        for line, series in zip(lines, panel.series, strict=True):
            assert list(line.get_xdata()) == [number for number, _ in series.points]
            values = [None if math.isnan(value) else value for value in line.get_ydata()]
            assert values == [value for _, value in series.points]
            assert (line.get_linestyle() == "--") == series.held_out
        colours = {series.label: line.get_color() for line, series in zip(lines, panel.series, strict=True)}
        assert len(set(colours.values())) == len(colours), "one colour per label"
        low, high = axes.get_ylim()
        assert all(low <= value <= high for series in panel.series for _, value in series.points if value is not None)


@pytest.mark.parametrize("key", ["memory", "flops", "up", "down"])
def test_bars_are_what_was_predicted_and_measured(make_records: Make, key: str) -> None:
    run, stages, _ = make_records(rounds=(0, 2, 3))
    rows = of_json(ledger_rows)(run, stages)
    figure = resource_figure(key, rows)
    assert figure is not None
    axes = figure.axes[0]
    pairs = [value for row in rows[1:3] for value in (row["predicted"][key], row["measured"][key])]
    assert [bar.get_height() for bar in axes.patches] == pairs
    assert set(axes.lines[0].get_ydata()) == {rows[-1]["predicted"][key]}
    assert resource_figure(key, of_json(ledger_rows)({**run, "predicted": [], "end_to_end": {}}, [])) is None


def test_cells_say_who_took_part_and_the_spread_whose_losses(make_records: Make) -> None:
    run, stages, rounds = make_records()
    figure = of_json(participation_figure)(run, stages=of_json(stages_of)(run, stages, rounds), rounds=rounds)
    cells = {patch.get_facecolor()[:3]: len(patch.get_path().codes) // 5 for patch in figure.axes[0].patches[-3:]}
    took, failed = sum(len(r["clients"]) for r in rounds), sum(len(r["failed"]) for r in rounds)
    everyone = len(rounds) * len(run["data"]["clients"])
    assert sorted(cells.values()) == sorted([took, failed, everyone - took - failed]) and len(cells) == 3
    means = [statistics.fmean(client["loss"] for client in record["clients"].values()) for record in rounds]
    assert list(figure.axes[1].lines[-1].get_ydata()) == pytest.approx(means)
    assert [bar.get_width() for bar in of_json(partition_figure)(run).axes[0].patches] == list(
        run["data"]["clients"].values()
    )


@pytest.mark.parametrize("changes", OTHER_SHAPES)
def test_no_text_is_cut_and_none_hides_another(make_records: Make, changes: Record) -> None:
    run, stages, rounds = make_records(**changes)
    run["data"]["clients"] |= {"a-hospital-with-a-long-name": 123_456_789}
    for number, record in enumerate(rounds):
        record["metrics"] |= {"odd": -123_456_789.0 * number, "odder": 1e-7 * number}
    for figure in figures_of(run, stages, rounds):
        check_texts(svg(figure))


def test_names_may_be_of_any_script(make_records: Make) -> None:
    run, stages, rounds = make_records(rounds=(1,))
    run["data"]["clients"] |= {"医院 $1_a$": 9}
    assert "医院 $1_a$" in of_json(draw_run)(run, stages=stages, rounds=rounds)["partition"].svg


def test_text_stays_text_in_the_pages_font(make_records: Make) -> None:
    for drawing in drawn(*make_records()).values():
        root = ElementTree.fromstring(drawing.svg)
        written = "".join(text.text or "" for text in root.iter("text"))
        assert re.search(r"[a-z]{4}", written), "letters, not their outlines"
        assert "font-family" not in drawing.svg and "<style" not in drawing.svg
        assert root.get("role") == "img" and root.get("aria-label") and root.get("class") == "figure"


def test_both_themes_have_every_colour(make_records: Make) -> None:
    lights = [light for light, _ in PALETTE.values()]
    assert len(set(lights)) == len(lights), "a colour stands for one variable"
    for drawing in drawn(*make_records()).values():
        assert not re.findall(r"(?:fill|stroke): (?!none|var\()[^;\"]+", drawing.svg)
        for name in re.findall(r"var\(--(\w+)\)", drawing.svg):
            assert f"--{name}:" in LIGHT and f"--{name}:" in DARK
    assert LIGHT in STYLE and DARK in STYLE


def test_ids_are_of_one_figure_each_and_refer_within_it(make_records: Make) -> None:
    seen: set[str] = set()
    for drawing in drawn(*make_records(objective="supervised")).values():
        ids = re.findall(r'\bid="([^"]+)"', drawing.svg)
        referred = {name for pair in re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', drawing.svg) for name in pair}
        assert len(ids) == len(set(ids)) and set(ids) == referred - {""}
        assert not seen & set(ids)
        seen |= set(ids)
    assert seen


def test_the_same_records_give_the_same_bytes_whatever_the_machines_settings(make_records: Make) -> None:
    first = drawn(*make_records())
    with matplotlib.rc_context({"lines.linewidth": 9, "font.size": 40, "axes.grid": False, "svg.hashsalt": "x"}):
        before = dict(matplotlib.rcParams)
        assert first == drawn(*make_records())
        assert dict(matplotlib.rcParams) == before, "and drawing changes none of them"


def test_figures_are_files_of_their_own_and_pixels(make_records: Make) -> None:
    run, stages, rounds = make_records()
    drawings = of_json(draw_run)(run, stages=stages, rounds=rounds)
    assert {"recall-t2i", "recall-i2t", "loss", "participation", "partition", "resources-memory"} <= set(drawings)
    assert {"resources-flops", "resources-upload", "resources-download"} <= set(drawings)
    for drawing in drawings.values():
        assert ElementTree.fromstring(document(drawing.svg)).tag == "{http://www.w3.org/2000/svg}svg"
    figure = of_json(partition_figure)(run)
    pixels = Image.open(io.BytesIO(png(figure))).convert("RGB")
    assert pixels.size == tuple(round(2 * side) for side in figure.bbox.size)
    colours = {colour for _, colour in pixels.getcolors(maxcolors=1 << 20) or ()}
    assert {(255, 255, 255), tuple(bytes.fromhex(COLOURS["c3"][1:]))} <= colours
    assert png(figure) == png(figure)


@pytest.mark.parametrize("last", [1, 2, 7, 8, 9, 15, 16, 36, 90, 120, 1000])
def test_rounds_are_labelled_from_the_first_at_even_steps(last: int) -> None:
    ticks = round_ticks(last)
    assert ticks[0] == 1 and ticks[-1] <= last and len(ticks) <= 11
    assert len({later - sooner for sooner, later in pairwise(ticks[1:])}) <= 1


def test_legends_wrap() -> None:
    assert legend_columns(["a", "b", "c"]) == 3
    assert legend_columns(["a" * 30] * 3, width=560) == 2
    assert legend_columns(["a" * 200], width=560) == 1
