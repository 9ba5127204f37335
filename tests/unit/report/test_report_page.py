"""The report holds what the records say, needs nothing from outside, and copes with what is missing."""

from __future__ import annotations

import base64
import io
import math
import re
from collections.abc import Callable
from html.parser import HTMLParser
from typing import Any

import pytest
from PIL import Image

from lwfed.report.figures import draw_run
from lwfed.report.page import final_metrics, render
from lwfed.report.series import panels_of, stages_of
from tests.records import of_json

Record = dict[str, Any]
Records = tuple[Record, list[Record], list[Record]]
Make = Callable[..., Records]
VOID = {"meta", "img", "br", "link", "input", "hr"}


class Page(HTMLParser):
    """Checks that elements are closed, and collects what the page refers to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.references: list[str] = []
        self.classes: list[str] = []
        self.scrolling: list[bool] = []
        self.counts: dict[str, int] = {}
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.counts[tag] = self.counts.get(tag, 0) + 1
        self.references += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href", "data")]
        if tag == "table":
            self.scrolling.append(any("scroll" in names.split() for names in self.classes))
        if tag not in VOID:
            self.open.append(tag)
            self.classes.append(dict(attrs).get("class") or "")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.counts[tag] = self.counts.get(tag, 0) + 1

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        self.classes.pop()

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_needs_nothing_else(make_records: Make, make_retrieval: Callable[[], list[Record]]) -> None:
    run, stages, rounds = make_records()
    html = of_json(render)(run, stages, rounds, retrieval=make_retrieval())
    page = Page(html)
    assert page.open == []
    assert page.references
    assert all(reference.startswith(("data:image/jpeg;base64,", "#")) for reference in page.references)
    assert not re.search(r"https?://|@import|url\((?!#)", html)
    assert page.counts.get("script", 0) == 0
    assert len(html) < 1_000_000


def test_the_page_says_what_the_records_say(make_records: Make, make_retrieval: Callable[[], list[Record]]) -> None:
    run, stages, rounds = make_records()
    page = Page(of_json(render)(run, stages, rounds, retrieval=make_retrieval()))
    assert run["run_id"] in page.text
    assert run["parent"]["run_id"] in page.text
    assert "complete" in page.text
    for record in stages:
        assert record["digest"][:12] in page.text
        assert record["key"][:12] in page.text
    failed = [(r["global_round"], client) for r in rounds for client in r["failed"]]
    assert failed
    assert f"{failed[0][0]}{failed[0][1]}trainingkilled by signal 9" in "".join(page.text.split("\n"))
    assert "rounds:" in page.text  # the spec
    assert "1–2 untrained" in page.text
    assert page.counts["img"] == 20
    assert page.text.count("✓") == 4
    best = of_json(final_metrics)(stages, rounds)["test/t2i/R@1"]
    assert f"{100 * best:.1f}" in page.text


@pytest.mark.parametrize(
    "changes",
    [
        {"rounds": (1,), "num_clients": 2, "failures": False},
        {"rounds": (3,), "num_clients": 1, "objective": "supervised", "strategy": "end_to_end"},
        {"rounds": (5, 0, 3, 0), "num_clients": 4, "failures": False},
        {"rounds": (15,) * 6, "num_clients": 40, "every": 5},
        {"rounds": (2, 2), "every": 9},
    ],
)
def test_runs_of_other_shapes(make_records: Make, changes: Record) -> None:
    run, stages, rounds = make_records(**changes)
    page = Page(of_json(render)(run, stages, rounds))
    assert page.open == []
    assert "nan" not in page.text.lower().replace("finance", "")
    assert "Retrieval" not in page.text


def test_a_run_that_goes_on(make_records: Make) -> None:
    run, stages, rounds = make_records()
    assert "3 of 6 stages, 6 rounds" in Page(of_json(render)(run, stages[:3], rounds[:6])).text
    begun = {**run, "stages": run["stages"][:3]}  # a run notes its stages' keys while it goes on
    assert of_json(render)(begun, stages[:3], rounds[:6]) == of_json(render)(run, stages[:3], rounds[:6])
    assert "No round is committed yet." in Page(of_json(render)(run, [], [])).text


def test_evaluations_that_failed_are_listed_with_the_failures(make_records: Make) -> None:
    run, stages, rounds = make_records(rounds=(3,), failures=False)
    assert "Failures" not in Page(of_json(render)(run, stages, rounds)).text
    rounds[0]["failed"] = {"client-002": "lost"}
    rounds[1]["failed_evaluations"] = {"client-001": "out of memory"}
    rounds[2]["failed_evaluations"] = {}
    lines = Page(of_json(render)(run, stages, rounds)).text.partition("Failures")[2].partition("Lineage")[0].split("\n")
    assert [line for line in lines if line.strip()][1:] == [
        "1client-002traininglost",
        "2client-001evaluationout of memory",
    ]


def test_residuals_that_were_lost_are_told(make_records: Make) -> None:
    run, stages, rounds = make_records(rounds=(3,), failures=False)
    assert "residual" not in Page(of_json(render)(run, stages, rounds)).text
    rounds[1]["lost_residuals"] = ["client-001"]
    text = Page(of_json(render)(run, stages, rounds)).text
    assert "residual" in text and "(client-001 in round 2)" in text


def test_wide_tables_scroll_in_their_own_frame(make_records: Make) -> None:
    run, stages, rounds = make_records()
    assert Page(of_json(render)(run, stages, rounds)).scrolling == [True, True, True]


def test_retrieved_images_keep_their_shape(make_records: Make) -> None:
    run, stages, rounds = make_records(rounds=(1,))
    shapes = {(640, 480): "1.33", (480, 640): "0.75", (20, 20): "1", (900, 90): "2.5"}
    results = [{"image": Image.new("RGB", size), "score": 0.5, "relevant": False, "caption": "c"} for size in shapes]
    html = of_json(render)(run, stages, rounds, retrieval=[{"query": "q", "results": results}])
    assert re.findall(r"--shape:([\d.]+)\"", html) == list(shapes.values())
    assert "object-fit: contain" in html
    for (width, height), data in zip(shapes, re.findall(r"base64,([^\"]+)", html), strict=True):
        image = Image.open(io.BytesIO(base64.b64decode(data)))
        assert image.width / image.height == pytest.approx(width / height, rel=0.02)


def test_values_that_are_missing(make_records: Make) -> None:
    run, stages, rounds = make_records(rounds=(3, 2))
    for value in (math.nan, math.inf):
        rounds[1]["metrics"]["test/loss"] = value
        rounds[2]["clients"] = {}
        rounds[3]["clients"][next(iter(rounds[3]["clients"]))]["loss"] = value
        stages[0]["ledger"]["measured"] = {"bytes_up": value}
        stages[1]["ledger"] = {}
        page = Page(of_json(render)({**run, "predicted": [], "end_to_end": {}, "parent": None}, stages, rounds))
        assert page.open == []
    gap = next(panel for panel in of_json(panels_of)(rounds) if panel.key == "loss").series[0]
    assert [number for number, value in gap.points if value is None] == [2]


def test_text_of_others_is_escaped(make_records: Make) -> None:
    run, stages, rounds = make_records(rounds=(1,), num_clients=2)
    rounds[0]["failed"] = {"client-000": "<script>alert(1)</script>"}
    rounds[0]["metrics"]["<b>odd</b>"] = 1.0
    found = of_json(render)({**run, "name": "<i>x</i>"}, stages, rounds, retrieval=[{"query": "<u>", "results": []}])
    assert "<script>" not in found
    assert "<b>odd" not in found
    assert "<i>x" not in found
    assert "<u>" not in found


def test_the_same_records_give_the_same_page(make_records: Make) -> None:
    run, stages, rounds = make_records()
    page = of_json(render)(run, stages, rounds)
    assert page == of_json(render)(run, stages[::-1], rounds[::-1])
    assert page == of_json(render)(run, stages, rounds, drawings=of_json(draw_run)(run, stages=stages, rounds=rounds))


def test_panels_gather_what_belongs_together(make_records: Make) -> None:
    _, _, rounds = make_records(rounds=(2,), objective="supervised")
    panels = {panel.key: panel for panel in of_json(panels_of)(rounds)}
    assert list(panels) == ["classification", "loss"]
    names = [(series.label, series.held_out) for series in panels["classification"].series]
    assert ("F1", False) in names
    assert ("F1", True) in names
    _, _, rounds = make_records(rounds=(2,))
    assert [panel.key for panel in of_json(panels_of)(rounds)] == ["recall-t2i", "recall-i2t", "zero-shot", "loss"]
    assert [series.label for series in of_json(panels_of)(rounds)[0].series] == ["R@1", "R@5", "R@10", "R@50"]


def test_stages_lie_along_the_rounds(make_records: Make) -> None:
    run, stages, rounds = make_records(rounds=(0, 2, 0, 3))
    spans = [(stage.number, stage.first, stage.last, stage.rounds) for stage in of_json(stages_of)(run, stages, rounds)]
    assert spans == [(1, 1, 0, 0), (2, 1, 2, 2), (3, 3, 2, 0), (4, 3, 5, 3)]
    assert [stage.number for stage in of_json(stages_of)(run, stages[:3], rounds[:4])] == [1, 2, 3, 4]
    assert [stage.number for stage in of_json(stages_of)(run, stages[:2], rounds[:2])] == [1, 2]


def test_figures_show_test_results_and_of_validation_data_the_loss(make_records: Make) -> None:
    _, _, rounds = make_records()
    before = of_json(panels_of)(rounds)
    for record in rounds:
        more = {name.replace("test/", "validation/"): value for name, value in record["metrics"].items()}
        record["metrics"] = {**record["metrics"], **more}
    after = of_json(panels_of)(rounds)
    assert [panel for panel in after if panel.key != "loss"] == [panel for panel in before if panel.key != "loss"]
    losses = next(panel for panel in after if panel.key == "loss")
    assert [series.label for series in losses.series] == ["test", "training", "validation"]
