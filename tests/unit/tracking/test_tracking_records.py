"""Records become events, metrics and parameters, and come back from a log that was torn by a kill."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from lwfed.environment import child_environment
from lwfed.tracking.jsonlines import (
    JsonLines,
    dated,
    encode_event,
    event_of,
    event_of_failure,
    event_of_finish,
    read_events,
    without_restarts,
)
from lwfed.tracking.metrics import PARAM_CHARS, flatten, flatten_params

Record = dict[str, Any]


class Log:
    """A log in memory."""

    def __init__(self, data: bytes = b"") -> None:
        self.data = data

    def append(self, data: bytes) -> None:
        self.data += data


def open_log(log: Log) -> JsonLines:
    return JsonLines(log.append, old=log.data)


def replay(log: Log, copy: Log) -> None:
    """Logs a whole log again, as it ended."""
    tracker = open_log(copy)
    for event in without_restarts(read_events(log.data)):
        tracker.record(event)


def test_a_round_becomes_its_metrics(rounds: list[Record]) -> None:
    metrics = flatten(rounds[1])
    assert metrics["test/t2i/R@1"] == 0.2
    assert metrics["stage"] == 1
    assert (metrics["clients/sampled"], metrics["clients/accepted"], metrics["clients/failed"]) == (3, 2, 1)
    assert (metrics["clients/loss_min"], metrics["clients/loss_max"], metrics["clients/loss_std"]) == (0.5, 1.5, 0.5)
    assert (metrics["bytes/up"], metrics["bytes/down"], metrics["bytes/down_frozen"]) == (200, 400, 100)
    assert metrics["memory/peak_rss_bytes"] == 7000
    assert (metrics["flops/step_forward"], metrics["flops/step_backward"]) == (10, 20)
    assert metrics["wall_s/round"] == 2.0
    assert "test/loss" not in metrics


def test_evaluations_that_failed_are_counted_where_there_are_any(rounds: list[Record]) -> None:
    assert "clients/failed_evaluations" not in flatten(rounds[0])
    assert "clients/failed_evaluations" not in flatten({**rounds[0], "failed_evaluations": {}})
    failed = {"client-000": "lost", "client-004": "out of memory"}
    assert flatten({**rounds[0], "failed_evaluations": failed})["clients/failed_evaluations"] == 2


def test_metrics_are_finite_numbers() -> None:
    record = {"stage": 1, "metrics": {"a": math.nan, "b": math.inf, "c": "x", "d": True, "e": 1}, "clients": {}}
    assert flatten(record) == {
        "e": 1.0, "stage": 1.0, "clients/sampled": 0.0, "clients/accepted": 0.0, "clients/failed": 0.0
    }  # fmt: skip


def test_parameters_are_dotted_and_short() -> None:
    values = {"a": {"b": [1, 2], "c": None, "d": True}, "e": [{"f": 1}], "g": {}, "h": "x" * 2 * PARAM_CHARS}
    params = flatten_params(values, prefix="p.")
    assert params["p.a.b"] == "1, 2"
    assert params["p.a.c"] == "null"
    assert params["p.a.d"] == "true"
    assert params["p.e.0.f"] == "1"
    assert params["p.g"] == "{}"
    assert len(params["p.h"]) == PARAM_CHARS


def test_a_resumed_run_logs_nothing_twice(
    make_run: Callable[..., Record], rounds: list[Record], stages: list[Record]
) -> None:
    log = Log()
    for _ in range(2):
        tracker = open_log(log)
        tracker.record(event_of("start", make_run("r")))
        for record in rounds:
            tracker.record(event_of("round", record))
        tracker.record(event_of("stage", stages[0]))
    kinds = [event["event"] for event in read_events(log.data)]
    assert kinds == ["start", "round", "round", "round", "stage", "start"]


def test_a_reused_stage_is_told_with_its_rounds_and_once(
    make_run: Callable[..., Record], rounds: list[Record], stages: list[Record]
) -> None:
    log, copy = Log(), Log()
    for _ in range(2):  # told, stopped, and told again
        tracker = open_log(log)
        tracker.record(event_of("start", make_run("new", stages=[])))
        for record in rounds[:2]:
            tracker.record(event_of("round", record))
        tracker.record(event_of("stage", {**stages[0], "reused": True}))
    tracker.record(event_of("stage", stages[1]))
    tracker.record(event_of("round", rounds[2]))
    told = [(event["event"], event["record"].get("global_round")) for event in without_restarts(read_events(log.data))]
    assert told == [("start", None), ("round", 1), ("round", 2), ("stage", None), ("stage", None), ("round", 3)]
    replay(log, copy)
    assert [event["record"] for event in read_events(copy.data)] == [
        event["record"] for event in without_restarts(read_events(log.data))
    ]


def test_events_say_when_they_were_told_and_keep_it() -> None:
    event = dated({"event": "fail", "reason": "x"})
    assert abs(datetime.fromisoformat(event["time"]).timestamp() - time.time()) < 5
    assert dated(event) == event


def test_a_torn_line_is_passed_over_and_the_log_goes_on(make_run: Callable[..., Record], rounds: list[Record]) -> None:
    log = Log()
    tracker = open_log(log)
    tracker.record(event_of("start", make_run("r")))
    tracker.record(event_of("round", rounds[0]))
    whole = log.data
    for cut in range(len(whole) - 40, len(whole)):
        torn = Log(whole[:cut])
        again = open_log(torn)
        again.record(event_of("round", rounds[0]))
        again.record(event_of("round", rounds[1]))
        events = read_events(torn.data)
        assert [event["event"] for event in events] == ["start", "round", "round"]
        assert [event["record"] for event in events[1:]] == rounds[:2]


def test_numbers_that_json_does_not_know_become_null() -> None:
    line = encode_event({"event": "round", "x": [math.nan, math.inf, 1.5]})
    assert json.loads(line)["x"] == [None, None, 1.5]
    assert line.endswith(b"\n")


def test_replay_logs_the_run_as_it_ended(
    make_run: Callable[..., Record], rounds: list[Record], stages: list[Record], tmp_path: Path
) -> None:
    log, copy = Log(), Log()
    tracker = open_log(log)
    tracker.record(event_of("start", make_run("r")))
    tracker.record(event_of("round", rounds[0]))
    tracker.record(event_of_failure("lost power"))
    tracker = open_log(log)
    tracker.record(event_of("start", make_run("r")))
    for record in rounds:
        tracker.record(event_of("round", record))
    for record in stages:
        tracker.record(event_of("stage", record))
    tracker.record(event_of_finish({"digest": "d"}, artifacts=[tmp_path / "report.html"], model={"digest": "d"}))
    replay(log, copy)
    told = [
        (event["event"], event.get("record", {}).get("stage"), event.get("record", {}).get("round"))
        for event in read_events(copy.data)
    ]
    assert told == [
        ("start", None, None), ("round", 1, 1), ("round", 1, 2), ("stage", 1, None), ("stage", 2, None),
        ("round", 3, 1), ("stage", 3, None), ("finish", None, None),
    ]  # fmt: skip
    end = read_events(copy.data)[-1]
    assert end["artifacts"] == [str(tmp_path / "report.html")]
    assert end["model"] == {"digest": "d"}


def test_an_end_before_the_last_start_is_not_told(make_run: Callable[..., Record]) -> None:
    log, copy = Log(), Log()
    tracker = open_log(log)
    tracker.record(event_of("start", make_run("r")))
    tracker.record(event_of_failure("lost power"))
    tracker.record(event_of("start", make_run("r")))
    tracker.warn("something")
    replay(log, copy)
    assert [event["event"] for event in read_events(copy.data)] == ["start"]


@pytest.mark.parametrize("data", [b"", b"\n", b"[1]\n", b"\xff\xfe\n", b'{"a":1}\n'])
def test_what_is_no_event_is_passed_over(data: bytes) -> None:
    assert read_events(data) == []


def test_a_tracker_costs_the_run_no_heavy_import() -> None:
    code = "import sys, lwfed.tracking.mlflow.process; print({'mlflow', 'torch', 'pandas', 'numpy'} & set(sys.modules))"
    path = os.pathsep.join(entry for entry in sys.path if entry)
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=child_environment(PYTHONPATH=path)
    )
    assert found.stdout.strip() == "set()"
