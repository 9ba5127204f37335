"""The log that every run has: one JSON object per line, from which all other records of the run can be rebuilt."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lwfed.tracking.protocol import Follower, Record, event_of, event_of_failure, event_of_finish


class JsonLines:
    """A tracker that appends events to a run's log and passes them on to a follower.

    Args:
        append: Appends bytes to the log.
        read: Returns the whole log; empty if there is none yet.
        follower: Receives every event, including rounds and stages that the log already has: it may have missed them.
        missed: Rounds and stages of earlier processes; the follower receives them after the first start.
    """

    def __init__(
        self,
        *,
        append: Callable[[bytes], None],
        read: Callable[[], bytes],
        follower: Follower | None = None,
        missed: Sequence[Record] = (),
    ) -> None:
        self._append, self._follower, self._missed = append, follower, missed
        old = read()
        self._torn = bool(old) and not old.endswith(b"\n")  # the writer was killed in the middle of a line
        self._logged = {_key(event) for event in read_events(old) if event["event"] in ("round", "stage")}

    def start(self, run: Record) -> None:
        """See `Tracker.start`."""
        self._record(event_of("start", run))
        missed, self._missed = self._missed, ()
        for event in missed:
            self._record_once(event)

    def round(self, record: Record) -> None:
        """See `Tracker.round`."""
        self._record_once(event_of("round", record))

    def stage(self, record: Record) -> None:
        """See `Tracker.stage`."""
        self._record_once(event_of("stage", record))

    def finish(self, summary: Record, *, artifacts: Sequence[Path] = (), model: Record | None = None) -> None:
        """See `Tracker.finish`."""
        self._record(event_of_finish(summary, artifacts=artifacts, model=model))

    def fail(self, reason: str, *, cancelled: bool = False, closing: bool = False) -> None:
        """See `Tracker.fail`."""
        self._record(event_of_failure(reason, cancelled=cancelled, closing=closing))

    def warn(self, message: str) -> None:
        """Logs a warning to users, such as an MLflow server that does not answer; followers do not receive it."""
        self._write(dated({"event": "warning", "message": message}))

    def close(self, timeout: float = 60.0) -> None:
        """See `Tracker.close`."""
        if self._follower is not None:
            self._follower.close(timeout)

    def _record_once(self, event: Record) -> None:
        key = _key(event)
        self._record(event, is_new=key not in self._logged)
        self._logged.add(key)

    def _record(self, event: Record, *, is_new: bool = True) -> None:
        event = dated(event)
        if is_new:
            self._write(event)
        if self._follower is not None:
            self._follower.send(event)

    def _write(self, event: Record) -> None:
        line = encode_event(event)
        self._append(b"\n" + line if self._torn else line)
        self._torn = False


def _key(event: Record) -> tuple[str, int, Any]:
    """Returns the key by which two events of a round or stage are the same."""
    record = event["record"]
    return event["event"], record["global_round" if event["event"] == "round" else "stage"], record.get("digest")


def dated(event: Mapping[str, Any]) -> dict[str, Any]:
    """Adds the current time to an event without a time."""
    return {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), **event}


def encode_event(event: Mapping[str, Any]) -> bytes:
    """Encodes an event as one line; NaN and infinite numbers, which JSON lacks, become null."""
    return json.dumps(_plain(event), separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode() + b"\n"


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
    starts: list[Record] = []
    ends: list[Record] = []
    latest: dict[tuple[Any, ...], Record] = {}
    for event in events:
        kind = event["event"]
        if kind == "start":
            starts.append(event)
            ends = []  # an end before this start does not count
        elif kind in ("finish", "fail"):
            ends.append(event)
        elif kind in ("round", "stage"):
            record = event["record"]
            number = record["global_round"] if kind == "round" else -1
            latest[(record["stage"], kind == "stage", number)] = event
    return [*starts[-1:], *(latest[key] for key in sorted(latest)), *ends[-1:]]


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
