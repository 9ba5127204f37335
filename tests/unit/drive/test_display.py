"""Laws of what a person sees while a run goes on: a line for what is committed, and the words of what went wrong."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Sequence

import pytest
from rich.console import Console

from lwfed.cli.tables import rounds_table, stages_table
from lwfed.drive.display import Display
from lwfed.run.events import Checking, ClientDone, ClientLog, Event, Warning, read_event, values_of
from lwfed.types.records import StageSummary
from lwfed.types.round_records import RoundRecord
from tests.tiny import Finished


def seen(finished: Finished, *, terminal: bool, extra: Sequence[Event] = ()) -> str:
    out = io.StringIO()
    console = Console(file=out, width=160, force_terminal=terminal, color_system=None, legacy_windows=False)
    with Display(console, total_rounds=4) as display:
        for event in [*finished.events, *extra]:
            display(event)
    return out.getvalue()


@pytest.mark.parametrize("terminal", [False, True])
def test_a_run_is_told_from_its_first_stage_to_its_last(finished: Finished, terminal: bool) -> None:
    text = seen(finished, terminal=terminal)
    assert finished.run.run_id in text and "layerwise" in text and "2 clients with 12 examples" in text
    for stage in (1, 2):
        assert re.search(rf"stage {stage}\b.*2 rounds.*key {finished.keys[stage - 1][:12]}", text)
        assert f"stage {stage} committed  {finished.checkpoint(stage).digest[:12]}" in text
    assert len(re.findall(r"round [12]/2  2 clients", text)) == 4


def test_off_a_terminal_no_line_is_written_over(finished: Finished) -> None:
    text = seen(finished, terminal=False)
    assert "\x1b" not in text and "\r" not in text
    assert len(re.findall(r"client-00\d  2 steps  loss", text)) == 8


def test_failures_and_warnings_are_told_as_they_are(finished: Finished) -> None:
    extra: list[Event] = [
        ClientDone(stage=1, round=3, client="client-001", failed="bad data: [x] is not a file"),
        ClientLog(client="client-001", line="tried again: [red]killed[/]"),
        Warning(message="3 captions [cut]"),
        Checking(split="train", done=4, total=4),
    ]
    text = seen(finished, terminal=False, extra=extra)
    assert "client-001 failed in round 3: bad data: [x] is not a file" in text
    assert "client-001: tried again: [red]killed[/]" in text, "what others wrote is no markup"
    assert "warning: 3 captions [cut]" in text
    assert "reading train files 4/4" in text


def test_tables_have_a_row_a_stage_and_a_round(finished: Finished) -> None:
    out = io.StringIO()
    console = Console(file=out, width=200, color_system=None)
    stages = [StageSummary.of(stage) for stage in finished.summary["stages"]]
    console.print(stages_table(stages, end_to_end=finished.run.end_to_end))
    console.print(rounds_table([RoundRecord.of(values) for values in finished.reported("round")]))
    text = out.getvalue()
    assert "end_to_end" in text and len(re.findall(r"2/2", text)) == 4
    reused = [stage.changed(reused=True) for stage in stages]
    console.print(stages_table(reused, end_to_end=finished.run.end_to_end))
    assert out.getvalue().count("reused") == 2


def test_an_event_that_nobody_handles_is_an_error() -> None:
    class Unheard:
        kind = "unheard"

    with Display(Console(file=io.StringIO())) as display, pytest.raises(AssertionError):
        display(Unheard())  # type: ignore[arg-type]  # what the type checker finds, too


def test_events_travel_as_lines_and_come_back_equal(finished: Finished) -> None:
    for event in finished.events:
        assert read_event(event.kind, json.loads(json.dumps(values_of(event)))) == event
    with pytest.raises(ValueError):
        read_event("unheard", {})
