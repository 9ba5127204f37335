"""How a run ended: its own log decides; the pipeline's word counts only where the log has no end."""

from __future__ import annotations

import pytest

from lwfed.tracking.ending import CANCELLED_REASON, Ending, ending_of
from lwfed.tracking.jsonlines import Record

START: Record = {"event": "start", "record": {}}
FINISH: Record = {"event": "finish", "record": {}}
FAIL: Record = {"event": "fail", "reason": "round 1 is below the quorum -> fix it"}
CANCEL: Record = {"event": "fail", "reason": "enough", "cancelled": True}
CLOSED: Record = {"event": "fail", "reason": FAIL["reason"], "closing": True}
"""What an exit task leaves."""
ROUND: Record = {"event": "round", "record": {}}
WORDS = ("COMPLETE", "SUCCEEDED", "FAILED", "ERROR", "RUNNING", "CANCELED", "CANCELING", "")
"""COMPLETE, FAILED and RUNNING were seen on Kubeflow Pipelines 2.17.0; SUCCEEDED is `kfp.local`'s word."""


@pytest.mark.parametrize("word", WORDS)
@pytest.mark.parametrize(
    ("events", "ending"),
    [
        ([START, ROUND, FINISH], Ending("finished")),
        ([START, FAIL, START, FINISH], Ending("finished")),
        ([START, FAIL], Ending("failed", FAIL["reason"])),
        ([START, FINISH, START, FAIL], Ending("failed", FAIL["reason"])),
        ([START, CANCEL, ROUND], Ending("cancelled", "enough")),
    ],
)
def test_the_last_end_in_the_log_decides(word: str, events: list[Record], ending: Ending) -> None:
    assert ending_of(events, state=word) == ending


@pytest.mark.parametrize("events", [[], [START], [START, ROUND], [START, FAIL, START], [START, FINISH, START, ROUND]])
def test_the_pipelines_word_counts_where_the_run_has_no_end(events: list[Record]) -> None:
    assert {ending_of(events, state=word) for word in ("COMPLETE", "SUCCEEDED")} == {Ending("finished")}
    assert {ending_of(events, state=word).status for word in ("FAILED", "ERROR")} == {"failed"}
    cancelled = {ending_of(events, state=word) for word in ("RUNNING", "CANCELED", "CANCELING", "")}
    assert cancelled == {Ending("cancelled", CANCELLED_REASON)}


@pytest.mark.parametrize("attempts", [1, 2])
def test_what_an_exit_task_closed_may_end_in_another_way_when_it_is_retried(attempts: int) -> None:
    events = [START, FAIL, START, CLOSED] * attempts
    assert ending_of(events, state="RUNNING") == Ending("cancelled", CANCELLED_REASON)
    assert ending_of(events, state="COMPLETE") == Ending("finished")
    assert ending_of(events, state="FAILED") == Ending("failed", FAIL["reason"]), "no vaguer word takes its place"
    assert ending_of([*events, START, FINISH], state="FAILED") == Ending("finished")
