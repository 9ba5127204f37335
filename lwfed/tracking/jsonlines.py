"""The log that is always on: one JSON object a line, from which everything else can be told again."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lwfed.tracking.protocol import Record, Tracker, event_of, event_of_failure, event_of_finish, tell


class JsonLines:
    """A tracker that appends events to a run's log.

    Args:
        append: Adds bytes to the end of the log.
        read: Gives the whole log; empty where there is none yet.
    """

    def __init__(self, *, append: Callable[[bytes], None], read: Callable[[], bytes]) -> None:
        self._append = append
        old = read()
        self._torn = bool(old) and not old.endswith(b"\n")  # the writer was killed in the middle of a line
        events = read_events(old)
        self._rounds = {
            (event["record"]["global_round"], event["record"].get("digest"))
            for event in events
            if event["event"] == "round"
        }
        self._stages = {
            (event["record"]["stage"], event["record"].get("digest")) for event in events if event["event"] == "stage"
        }

    def start(self, run: Record) -> None:
        """See `Tracker.start`."""
        self._write(event_of("start", run))

    def round(self, record: Record) -> None:
        """See `Tracker.round`."""
        key = (record["global_round"], record.get("digest"))
        if key not in self._rounds:
            self._rounds.add(key)
            self._write(event_of("round", record))

    def stage(self, record: Record) -> None:
        """See `Tracker.stage`."""
        key = (record["stage"], record.get("digest"))
        if key not in self._stages:
            self._stages.add(key)
            self._write(event_of("stage", record))

    def finish(self, summary: Record, *, artifacts: Sequence[Path] = (), model: Record | None = None) -> None:
        """See `Tracker.finish`."""
        self._write(event_of_finish(summary, artifacts=artifacts, model=model))

    def fail(self, reason: str, *, cancelled: bool = False, closing: bool = False) -> None:
        """See `Tracker.fail`."""
        self._write(event_of_failure(reason, cancelled=cancelled, closing=closing))

    def warn(self, message: str) -> None:
        """Notes something that users should see, such as an MLflow server that does not answer."""
        self._write({"event": "warning", "message": message})

    def close(self, timeout: float = 60.0) -> None:
        """See `Tracker.close`: every line is already written."""

    def _write(self, event: Mapping[str, Any]) -> None:
        line = encode_event(dated(event))
        self._append(b"\n" + line if self._torn else line)
        self._torn = False


def dated(event: Mapping[str, Any]) -> dict[str, Any]:
    """Notes in an event when it is told: now, unless it says so already."""
    return {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), **event}


def encode_event(event: Mapping[str, Any]) -> bytes:
    """Encodes an event as one line; NaN and infinite numbers, which JSON does not know, become null."""
    return json.dumps(_plain(event), separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode() + b"\n"


def read_events(data: bytes) -> list[dict[str, Any]]:
    """Reads a log.

    Args:
        data: The log; a line that was torn by a kill is passed over.

    Returns:
        The events, in the order they were written.
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


def replay(events: Iterable[Record], tracker: Tracker) -> None:
    """Tells a tracker a whole log again, each round and stage once; see `as_it_ended`. The tracker is not closed."""
    for event in as_it_ended(events):
        tell(tracker, event)


def as_it_ended(events: Iterable[Record]) -> list[Record]:
    """Gives a log's events as if the run had never been stopped: each round and stage once, in order.

    Args:
        events: What `read_events` gave; of several starts and ends (a run that was resumed) the last counts.

    Returns:
        The start, the rounds of each stage before the stage, and the end where there is one.
    """
    starts: list[Record] = []
    ends: list[Record] = []
    told: dict[tuple[Any, ...], Record] = {}
    for event in events:
        kind = event["event"]
        if kind == "start":
            starts.append(event)
            ends = []  # an end before this start is not the end
        elif kind in ("finish", "fail"):
            ends.append(event)
        elif kind in ("round", "stage"):
            record = event["record"]
            number = record["global_round"] if kind == "round" else -1
            told[(record["stage"], kind == "stage", number)] = event
    return [*starts[-1:], *(told[key] for key in sorted(told)), *ends[-1:]]


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
