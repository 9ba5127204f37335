"""The page and its figures say what the comparison says, need nothing else, and are the same as pixels."""

from __future__ import annotations

import io
import math
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from html.parser import HTMLParser
from itertools import pairwise

import pytest
from PIL import Image

from lwfed.report.compare.budget import Budget
from lwfed.report.compare.compare import RunHistory, compare_runs
from lwfed.report.compare.page import chance_of, comparison_figures, comparison_files, render_comparison
from lwfed.report.compare.records import Comparison
from lwfed.report.figures_compare import styles
from lwfed.report.raster import png
from lwfed.report.svg import Plot, log_marks, log_ticks, text_width

Make = Callable[..., list[RunHistory]]
NAMES = {"quality-rounds.svg", "quality-bytes.svg", "quality-flops.svg", "memory-stages.svg", "compare.svg"}
SVG = "{http://www.w3.org/2000/svg}"


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
    data = six[0][0]["data"]
    html = render_comparison(comparison, name="tiny", data=data, budgets=budgets, chance=0.125)
    page = Page(html)
    assert page.open == [] and page.references == []
    assert not re.search(r"https?://|@import|url\(|<script", html)
    assert "nan" not in page.text.lower()
    for run, _, rounds in six:
        assert run["run_id"] in page.text and rounds[-1]["digest"][:12] in page.text
    assert "n = 2 (seeds 0, 1)" in page.text and "12.5 %" in page.text
    assert "does not fit: its first round needs" in page.text and "fits whole" in page.text
    assert html == render_comparison(
        compare_runs(six[::-1]), name="tiny", data=data, budgets=budgets, chance=chance_of("test/t2i/R@1", data)
    )


@pytest.mark.parametrize("wanted", [["layerwise:0"], ["end_to_end:0"], ["end_to_end:0 evaluation.every=3"]])
def test_comparisons_of_other_shapes(make_histories: Make, wanted: list[str]) -> None:
    histories = make_histories(*wanted)
    for metric in (None, "test/loss", "train/loss"):
        found = compare_runs(histories, metric=metric)
        assert Page(render_comparison(found, name="tiny", data=histories[0][0]["data"])).open == []
        assert set(comparison_files(found)) == NAMES


def test_bands_stand_where_there_are_several_seeds(comparison: Comparison, make_histories: Make) -> None:
    with_bands = comparison_figures(comparison)["quality-rounds"][1]
    assert with_bands.count('class="spread') == 3
    alone = compare_runs(make_histories("layerwise:0", "end_to_end:0"))
    assert "spread" not in comparison_figures(alone)["quality-rounds"][1]


def test_budgets_are_marked_where_a_line_crosses_them(comparison: Comparison, budgets: list[Budget]) -> None:
    drawn = comparison_figures(comparison, budgets=budgets)
    assert drawn["quality-bytes"][1].count('class="limit"') == 1
    assert drawn["quality-bytes"][1].count('class="ring') >= 1
    assert drawn["memory-stages"][1].count('class="limit"') == 1
    assert "→" in drawn["quality-flops"][1]  # far beyond what is drawn
    assert "ring" not in "".join(svg for _, svg in comparison_figures(comparison).values())


def test_no_text_is_cut_or_overlaps_another(comparison: Comparison, budgets: list[Budget]) -> None:
    for name, (_, svg) in comparison_figures(comparison, budgets=budgets).items():
        root = ElementTree.fromstring(svg)
        width, height = (float(value) for value in root.attrib["viewBox"].split()[2:])
        boxes = []
        for element in root.iter("text"):
            content = element.text or ""
            wide = text_width(content, strong="strong" in element.attrib["class"])
            left = (
                float(element.attrib["x"])
                - {"start": 0.0, "middle": 0.5, "end": 1.0}[element.attrib["text-anchor"]] * wide
            )
            y = float(element.attrib["y"])
            assert left >= 0 and left + wide <= width and 9 <= y <= height, f"{name}: {content}"
            boxes.append((left, y - 9, left + wide, y, content))
        for index, one in enumerate(boxes):
            for other in boxes[index + 1 :]:
                meet = one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
                assert not meet, f"{name}: {one[4]} / {other[4]}"


def test_groups_are_told_apart_without_colours(comparison: Comparison, make_histories: Make) -> None:
    looks = list(styles(comparison.groups).values())
    assert len({look.colour for look in looks}) == len({look.dash for look in looks}) == 3
    assert len({look.mark for look in looks}) == 3
    variants = compare_runs(make_histories("layerwise:0", "layerwise:0 training.local_epochs=2"))
    assert len({look.colour for look in styles(variants.groups).values()}) == 2


def test_figures_are_drawn_as_pixels_too(comparison: Comparison, budgets: list[Budget]) -> None:
    files = comparison_files(comparison, budgets=budgets)
    assert set(files) == NAMES
    for svg in files.values():
        root = ElementTree.fromstring(svg)
        assert root.tag == f"{SVG}svg"
        width, height = (float(value) for value in root.attrib["viewBox"].split()[2:])
        image = Image.open(io.BytesIO(png(svg, scale=1.0)))
        assert image.size == (round(width), round(height))
        colours = {colour for _, colour in image.convert("RGB").getcolors(maxcolors=1 << 20) or ()}
        near = [min(sum(abs(a - b) for a, b in zip(c, (37, 99, 201), strict=True)) for c in colours)]
        assert (255, 255, 255) in colours and near[0] < 24  # paper, and the blue of layerwise
    assert png(files["compare.svg"]) == png(files["compare.svg"])


def test_pixels_stand_where_the_figure_says() -> None:
    svg = (
        '<svg viewBox="0 0 40 20"><g transform="translate(10 0)"><rect x="0" y="5" width="10" height="10" '
        'class="f1"/></g><path d="M0 18L40 18" class="axis"/></svg>'
    )
    image = Image.open(io.BytesIO(png(svg, scale=1.0))).convert("RGB")
    assert image.getpixel((15, 10)) == (37, 99, 201) and image.getpixel((5, 10)) == (255, 255, 255)
    assert image.getpixel((15, 2)) == (255, 255, 255) and image.getpixel((30, 18)) != (255, 255, 255)


def test_ticks_of_equal_factors() -> None:
    assert log_ticks(1, 100) == [1, 2, 5, 10, 20, 50, 100]
    assert log_ticks(3e6, 2e10) == [1e7, 1e8, 1e9, 1e10]
    assert log_ticks(1.5, 90) == [2, 5, 10, 20, 50]


def test_marks_of_a_log_axis_leave_room_for_their_labels() -> None:
    def named(mark: float) -> str:
        return f"{mark:g} GFLOP"

    for right, most in ((1200, 7), (400, 5), (250, 3)):
        plot = Plot(0, 0, right, 100, (1.0, 3.1), (0, 1))
        marks = log_marks(10, 10**3.1, plot=plot, write=named)
        assert 2 <= len(marks) <= most
        ends = [(plot.px(math.log10(mark)), text_width(named(mark)) / 2) for mark in marks]
        assert all(a + half < b - other for (a, half), (b, other) in pairwise(ends))
