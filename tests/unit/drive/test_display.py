"""Laws of what a person sees while a run goes on: a line for what is committed, and the words of what went wrong."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from lwfed.cli.tables import rounds_table, stages_table
from lwfed.drive.display import Display
from tests.tiny import Finished


def seen(finished: Finished, *, terminal: bool, extra: list[tuple[str, dict[str, object]]] | None = None) -> str:
    out = io.StringIO()
    console = Console(file=out, width=160, force_terminal=terminal, color_system=None, legacy_windows=False)
    with Display(console, total_rounds=4) as display:
        for kind, values in [*finished.events, *(extra or [])]:
            display(kind, values)
    return out.getvalue()


@pytest.mark.parametrize("terminal", [False, True])
def test_a_run_is_told_from_its_first_stage_to_its_last(finished: Finished, terminal: bool) -> None:
    text = seen(finished, terminal=terminal)
    assert finished.run["run_id"] in text and "layerwise, 2 clients of 12 examples, 8 to test on (shapes)" in text
    for stage in (1, 2):
        assert re.search(rf"stage {stage}\b.*2 rounds.*key {finished.keys[stage - 1][:12]}", text)
        assert f"stage {stage} committed  {finished.checkpoint(stage).digest[:12]}" in text
    assert len(re.findall(r"round [12]/2  2 clients", text)) == 4


def test_off_a_terminal_no_line_is_written_over(finished: Finished) -> None:
    text = seen(finished, terminal=False)
    assert "\x1b" not in text and "\r" not in text
    assert len(re.findall(r"client-00\d  2 steps  loss", text)) == 8


def test_failures_and_warnings_are_told_as_they_are(finished: Finished) -> None:
    extra: list[tuple[str, dict[str, object]]] = [
        ("client_done", {"client": "client-001", "round": 3, "failed": "bad data: [x] is not a file", "metrics": None}),
        ("client_log", {"client": "client-001", "line": "tried again: [red]killed[/]"}),
        ("warning", {"message": "3 captions [cut]"}),
        ("something_new", {"a": 1}),
        ("checking", {"split": "train", "done": 4, "total": 4}),
    ]
    text = seen(finished, terminal=False, extra=extra)
    assert "client-001 failed in round 3: bad data: [x] is not a file" in text
    assert "client-001: tried again: [red]killed[/]" in text, "what others wrote is no markup"
    assert "warning: 3 captions [cut]" in text
    assert "reading train files 4/4" in text


def test_tables_have_a_row_a_stage_and_a_round(finished: Finished) -> None:
    out = io.StringIO()
    console = Console(file=out, width=200, color_system=None)
    console.print(stages_table(finished.summary["stages"], end_to_end=finished.run["end_to_end"]))
    console.print(rounds_table(finished.told("round")))
    text = out.getvalue()
    assert "end_to_end" in text and len(re.findall(r"2/2", text)) == 4
    reused = [{**stage, "reused": True} for stage in finished.summary["stages"]]
    console.print(stages_table(reused, end_to_end=finished.run["end_to_end"]))
    assert out.getvalue().count("reused") == 2
