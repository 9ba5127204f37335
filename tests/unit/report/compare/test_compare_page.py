"""The page and its figures say what the comparison says, and need nothing else."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from html.parser import HTMLParser
from typing import Any
from xml.etree import ElementTree

import pytest
from matplotlib.collections import PolyCollection
from PIL import Image

from lwfed.report.compare.budget import Budget
from lwfed.report.compare.compare import RunHistory, compare_runs
from lwfed.report.compare.figures import comparison_figures, comparison_files, styles
from lwfed.report.compare.page import render_comparison
from lwfed.report.compare.records import Comparison
from lwfed.report.compare.table import stage_memory
from lwfed.report.plots import COLOURS, svg
from tests.unit.report.texts import check_texts

Make = Callable[..., list[RunHistory]]
NAMES = ("quality-rounds", "quality-bytes", "quality-flops", "memory-stages")
FILES = {f"{name}.{kind}" for name in (*NAMES, "compare") for kind in ("svg", "png")}


class Page(HTMLParser):
    """Collects a page's text and what it refers to, and checks that elements are closed."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.references: list[str] = []
        self.text = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.references += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def comparison(six: list[RunHistory]) -> Comparison:
    return compare_runs(six)


@pytest.fixture(scope="module")
def budgets(comparison: Comparison) -> list[Budget]:
    return [
        Budget("bytes", 0.6 * comparison.groups[0].last.moved_bytes),
        Budget("memory", 0.9 * comparison.groups[0].last.peak_bytes),
        Budget("flops", 100 * comparison.groups[0].last.flops),
    ]


def test_the_page_needs_nothing_else_and_says_what_was_found(
    comparison: Comparison, budgets: list[Budget], six: list[RunHistory]
) -> None:
    data = six[0][0].data
    html = render_comparison(comparison, name="tiny", data=data, budgets=budgets)
    page = Page(html)
    assert page.open == [] and not [at for at in page.references if not at.startswith("#")]
    assert not re.search(r"https?://|@import|url\((?!#)|<script", html)
    assert "nan" not in page.text.lower()
    for run, _, rounds in six:
        assert run.run_id in page.text and rounds[-1].digest[:12] in page.text
    assert "n = 2 (seeds 0, 1)" in page.text and "12.5 %" in page.text
    assert "does not fit: its first round needs" in page.text and "fits entirely" in page.text
    assert html == render_comparison(compare_runs(six[::-1]), name="tiny", data=data, budgets=budgets)


@pytest.mark.parametrize("wanted", [["layerwise:0"], ["end_to_end:0"], ["end_to_end:0 evaluation.every=3"]])
def test_comparisons_of_other_shapes(make_histories: Make, wanted: list[str]) -> None:
    histories = make_histories(*wanted)
    for metric in (None, "test/loss", "train/loss"):
        found = compare_runs(histories, metric=metric)
        assert Page(render_comparison(found, name="tiny", data=histories[0][0].data)).open == []
        assert set(comparison_files(found)) == FILES


def test_lines_are_the_groups_means_and_bands_their_deviation(comparison: Comparison, make_histories: Make) -> None:
    spent: dict[str, Callable[[Any], float]] = {
        "quality-rounds": lambda at: at.round,
        "quality-bytes": lambda at: at.moved_bytes,
        "quality-flops": lambda at: at.flops,
    }
    looks = styles(comparison.groups)
    figures = comparison_figures(comparison)
    for name, x in spent.items():
        axes = figures[name][1].axes[0]
        lines = {line.get_color(): line for line in axes.lines}
        bands = [band for band in axes.collections if isinstance(band, PolyCollection)]
        assert len(lines) == len(bands) == len(comparison.groups) == 3
        for group in comparison.groups:
            line = lines[COLOURS[looks[group.label].colour]]
            assert list(line.get_xdata()) == [x(point) for point in group.means]
            assert list(line.get_ydata()) == [point.quality.mean for point in group.means if point.quality]
    alone = compare_runs(make_histories("layerwise:0", "end_to_end:0"))
    assert not comparison_figures(alone)["quality-rounds"][1].axes[0].collections


def test_bars_and_lines_are_the_stages_memory(comparison: Comparison) -> None:
    axes = comparison_figures(comparison)["memory-stages"][1].axes[0]
    memory = [stage_memory(group) for group in comparison.groups]
    bars = sorted(item.measured or 0 for items in memory if len(items) > 1 for item in items)
    assert sorted(bar.get_height() for bar in axes.patches) == bars
    lines = sorted(items[0].measured or 0 for items in memory if len(items) == 1)
    assert sorted(line.get_ydata()[0] for line in axes.lines) == lines and bars and lines


def test_budgets_are_marked_where_a_line_crosses_them(comparison: Comparison, budgets: list[Budget]) -> None:
    drawn = {name: svg(figure) for name, (_, figure) in comparison_figures(comparison, budgets=budgets).items()}
    plain = {name: svg(figure) for name, (_, figure) in comparison_figures(comparison).items()}
    assert all(f"budget {budgets[n].text}<" in drawn[name] for n, name in ((0, "quality-bytes"), (1, "memory-stages")))
    assert f"budget {budgets[2].text} →" in drawn["quality-flops"], "far beyond what is drawn"
    assert not any("budget" in text for text in plain.values())
    rings = {name: drawn[name].count("<use") - plain[name].count("<use") for name in NAMES}
    assert rings["quality-bytes"] >= 1 and rings["quality-rounds"] >= 1 and rings["memory-stages"] == 0


def test_no_text_is_cut_and_none_hides_another(
    comparison: Comparison, budgets: list[Budget], make_histories: Make
) -> None:
    variants = compare_runs(make_histories("layerwise:0", "layerwise:0 training.local_epochs=2", "end_to_end:0"))
    for found, limits in ((comparison, budgets), (comparison, ()), (variants, budgets)):
        for _, figure in comparison_figures(found, budgets=limits).values():
            check_texts(svg(figure))


def test_groups_differ_without_colours_too(comparison: Comparison, make_histories: Make) -> None:
    looks = list(styles(comparison.groups).values())
    assert len({look.colour for look in looks}) == len({look.dash for look in looks}) == 3
    assert len({look.mark for look in looks}) == 3
    variants = compare_runs(make_histories("layerwise:0", "layerwise:0 training.local_epochs=2"))
    assert len({look.colour for look in styles(variants.groups).values()}) == 2


def test_figures_are_files_as_vectors_and_as_pixels(comparison: Comparison, budgets: list[Budget]) -> None:
    files = comparison_files(comparison, budgets=budgets)
    assert set(files) == FILES
    for name in (*NAMES, "compare"):
        root = ElementTree.fromstring(files[f"{name}.svg"])
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
        width, height = (float(value) for value in root.attrib["viewBox"].split()[2:])
        image = Image.open(io.BytesIO(files[f"{name}.png"])).convert("RGB")
        assert image.size == (round(2 * width), round(2 * height))
        colours = {colour for _, colour in image.getcolors(maxcolors=1 << 20) or ()}
        assert {(255, 255, 255), tuple(bytes.fromhex(COLOURS["c1"][1:]))} <= colours  # paper, and layerwise's
    assert files == comparison_files(comparison, budgets=budgets)
