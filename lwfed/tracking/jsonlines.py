"""The log that every run has: one JSON object per line, from which all other records of the run can be rebuilt.

An event says what happened to a run: `start`, `round`, `stage`, `finish` or `fail`. It is logged after its work is
committed, so a slow, failing or absent follower changes no result.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from pydantic_core import to_json

Record = Mapping[str, Any]
"""A JSON object: an event, or its RunRecord, RoundRecord, StageRecord or RunSummary."""


class JsonLines:
    """A run's log, as one process appends to it.

    Args:
        append: Appends bytes to the log.
        old: The log so far; empty if there is none yet.
        follow: Receives every event, including rounds and stages that the log already has: it may have missed them.
    """

    def __init__(
        self, append: Callable[[bytes], None], *, old: bytes = b"", follow: Callable[[Record], None] | None = None
    ) -> None:
        self._append, self._follow = append, follow
        self._torn = bool(old) and not old.endswith(b"\n")  # the writer was killed in the middle of a line
        self._logged = {_key(event) for event in read_events(old)} - {None}

    def record(self, event: Record) -> None:
        """Logs an event, as returned by `event_of*`; a round or stage only once."""
        event = dated(event)
        key = _key(event)
        if key not in self._logged:
            self._write(event)
        if key is not None:
            self._logged.add(key)
        if self._follow is not None:
            self._follow(event)

    def warn(self, message: str) -> None:
        """Logs a warning to users, such as an MLflow server that does not answer; it is not passed on."""
        self._write(dated({"event": "warning", "message": message}))

    def _write(self, event: Record) -> None:
        line = encode_event(event)
        self._append(b"\n" + line if self._torn else line)
        self._torn = False


def _key(event: Record) -> tuple[str, int, Any] | None:
    """Returns the key by which two events of a round or stage are the same; None for other events."""
    kind = event["event"]
    if kind not in ("round", "stage"):
        return None
    record = event["record"]
    return kind, record["global_round" if kind == "round" else "stage"], record.get("digest")


def event_of(kind: Literal["start", "round", "stage"], record: Record) -> dict[str, Any]:
    """Returns the event of a run's start or resumption, or of a committed round or stage, with its record."""
    return {"event": kind, "record": record}


def event_of_finish(summary: Record, *, artifacts: Sequence[Path] = (), model: Record | None = None) -> dict[str, Any]:
    """Returns the event of a run's end: its summary, files and folders to keep, and the model to register."""
    paths = [str(path.absolute()) for path in artifacts]
    return {"event": "finish", "record": summary, "artifacts": paths, "model": model}


def event_of_failure(reason: str, *, cancelled: bool = False, closing: bool = False) -> dict[str, Any]:
    """Returns the event of a run that ended early.

    Args:
        reason: The reason in one line.
        cancelled: Whether somebody ended it on purpose.
        closing: Whether the caller only closes a run that others left open; a later attempt may end differently.
    """
    marks = {name: True for name, holds in (("cancelled", cancelled), ("closing", closing)) if holds}
    return {"event": "fail", "reason": reason, **marks}


def dated(event: Mapping[str, Any]) -> dict[str, Any]:
    """Adds the current time to an event without a time."""
    return {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), **event}


def encode_event(event: Mapping[str, Any]) -> bytes:
    """Encodes an event as one line; NaN and infinite numbers, which JSON lacks, become null."""
    return to_json(event, inf_nan_mode="null") + b"\n"


def read_events(data: bytes) -> list[dict[str, Any]]:
    """Parses a log.

    Args:
        data: The log; a line that a kill cut off is skipped.

    Returns:
        The events, in the order of writing.
    """
    events = []
    for line in data.split(b"\n"):
        try:
            event = json.loads(line)
        except ValueError:  # also bytes that are not UTF-8
            continue
        if isinstance(event, dict) and "event" in event:
            events.append(event)
    return events


def without_restarts(events: Iterable[Record]) -> list[Record]:
    """Returns a log's events as if the run had never been interrupted: each round and stage once, in order.

    Args:
        events: The log, as returned by `read_events`; of several starts and ends (of a resumed run) the last counts.

    Returns:
        The start, the rounds of each stage before the stage, and the end if there is one.
    """
    start: list[Record] = []
    end: list[Record] = []
    latest: dict[tuple[int, float], Record] = {}  # by stage and global round; a stage's end comes after all its rounds
    for event in events:
        match event["event"]:
            case "start":
                start, end = [event], []  # an end before this start does not count
            case "finish" | "fail":
                end = [event]
            case "round":
                latest[event["record"]["stage"], event["record"]["global_round"]] = event
            case "stage":
                latest[event["record"]["stage"], math.inf] = event
    return [*start, *(latest[key] for key in sorted(latest)), *end]
