"""Delivers events to MLflow in order; after a failure it retries later.

`python -m lwfed.tracking.mlflow.delivery FOLDER PID` is the process that follows a live run; see `serve`.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lwfed import environment
from lwfed.patience import Patience
from lwfed.tracking.jsonlines import Record, read_events, without_restarts
from lwfed.tracking.mlflow.place import check_place, reason_of
from lwfed.tracking.mlflow.target import Target

POLL_S = 0.1
TRIES = 3
"""Tries of an event that a healthy server refuses."""


@dataclass(frozen=True, slots=True)
class Status:
    """The state of delivery.

    Attributes:
        told: Number of events to deliver.
        delivered: Number of delivered events.
        down: Why MLflow cannot be reached; None if it can.
        refused: Events that MLflow refused for another reason, as `event: reason`.
        run_id: The MLflow run of the experiment.
        experiment_id: Its experiment.
        model: The registered model, as `name/version`.
    """

    told: int = 0
    delivered: int = 0
    down: str | None = None
    refused: tuple[str, ...] = ()
    run_id: str | None = None
    experiment_id: str | None = None
    model: str | None = None

    @property
    def complete(self) -> bool:
        """Whether MLflow has everything."""
        return self.delivered == self.told and not self.refused


class Delivery:
    """A queue of events for MLflow.

    Args:
        target: The place in MLflow.
        live: Whether the run is still running, so that this process reports its end.
        clock: Returns seconds, for the pauses between tries.

    Attributes:
        ended: Whether the last event of this process is among the events.
    """

    def __init__(self, target: Target, *, live: bool = True, clock: Callable[[], float] = time.monotonic) -> None:
        self._target = target
        self._live = live
        self._clock = clock
        self.ended = False
        self._events: list[Record] = []
        self._next = 0
        self._tries = 0
        self._patience = Patience(bound_s=math.inf, first_s=5.0, longest_s=120.0, clock=clock)
        self._not_before = 0.0
        self._down: str | None = None
        self._refused: list[str] = []
        self._recorder: Any = None  # a Recorder; its module imports MLflow, which takes seconds

    def add(self, event: Record) -> None:
        """Appends an event."""
        self._events.append(event)
        self.ended = self.ended or _is_end(event, stage=self._target.stage)

    def drain(self, *, now: bool = False) -> bool:
        """Delivers the queued events.

        Args:
            now: Whether to try without waiting for the pause after a failure.

        Returns:
            Whether the queue is empty.
        """
        while self._next < len(self._events):
            if not now and self._clock() < self._not_before:
                return False
            event = self._events[self._next]
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # warnings of MLflow and SQLAlchemy for their own developers
                    if self._recorder is None:
                        check_place(self._target.uri)
                        from lwfed.tracking.mlflow.recorder import Recorder

                        self._recorder = Recorder(self._target, live=self._live)
                    self._recorder.record(event)
            except Exception as error:  # no failure of a server, database or library may stop training
                if not self._after_failure(event, reason_of(error)):
                    return False
                continue
            self._patience.answered()
            self._down, self._tries = None, 0
            self._next += 1
        return True

    def close(self) -> None:
        """Marks a live run without a recorded end as abandoned by its process, and closes the recorder."""
        try:
            if self._recorder is not None:
                if self._live and not self.ended and self._next:
                    self._recorder.abandon()
                self._recorder.close()
        except Exception as error:
            self._down = reason_of(error)

    def status(self) -> Status:
        """Returns the state of delivery."""
        recorder = self._recorder
        return Status(
            told=len(self._events),
            delivered=self._next - len(self._refused),
            down=self._down,
            refused=tuple(self._refused),
            run_id=recorder.run_id if recorder else None,
            experiment_id=recorder.experiment_id if recorder else None,
            model=recorder.model if recorder else None,
        )

    def _after_failure(self, event: Record, reason: str) -> bool:
        """Drops an event that a healthy server keeps refusing, or waits; returns whether to continue at once."""
        self._tries += 1
        if event["event"] != "start" and self._healthy():
            if self._tries < TRIES:
                return True
            self._refused.append(f"{event['event']}: {reason}")
            self._next += 1
            self._tries = 0
            return True
        self._down = reason
        self._not_before = self._clock() + (self._patience.failed(reason) or 0.0)
        return False

    def _healthy(self) -> bool:
        try:
            self._recorder.client.get_run(self._recorder.run_id)
        except Exception:
            return False
        return True


def replay_to_mlflow(events: Iterable[Record], *, target: Target) -> Status:
    """Brings MLflow up to date with a JSON-lines log; logs nothing twice.

    Args:
        events: The log, as returned by `lwfed.tracking.jsonlines.read_events`.
        target: The place in MLflow.

    Returns:
        The state of delivery; it does not raise if MLflow is down.
    """
    delivery = Delivery(target, live=False)
    for event in without_restarts(events):
        delivery.add(event)
    delivery.drain(now=True)
    delivery.close()
    return delivery.status()


def serve(folder: Path, *, gone: Callable[[], bool]) -> None:
    """Delivers the events appended to `events.jsonl` until `close`, or until the writer is gone.

    Args:
        folder: Contains `target.json` and `events.jsonl`; receives `status.json`.
        gone: Whether the writing process has ended.
    """
    target = Target(**json.loads((folder / "target.json").read_bytes()))
    delivery, written = Delivery(target), Status()
    torn, over = b"", False
    with (folder / "events.jsonl").open("rb") as file:
        while not over:
            over = lost = gone()
            *lines, torn = (torn + file.read()).split(b"\n")
            for event in read_events(b"\n".join(lines)):
                if event["event"] == "close":
                    over, lost = True, False
                else:
                    delivery.add(event)
            if delivery.ended or not lost:  # else the run may already continue in another process
                delivery.drain(now=over)
            if delivery.status() != written:
                written = delivery.status()
                _publish(folder, written)
            if not over and not lines:
                time.sleep(POLL_S)
    delivery.close()
    _publish(folder, delivery.status())
    if gone():
        shutil.rmtree(folder, ignore_errors=True)


def _is_end(event: Record, *, stage: int | None) -> bool:
    """Whether an event is the last one of a process, given its stage."""
    if event["event"] == "stage":
        return stage is not None and event["record"]["stage"] == stage
    return event["event"] in ("finish", "fail")


def _publish(folder: Path, status: Status) -> None:
    scratch = folder / "status.tmp"
    with suppress(OSError):  # the run's process has deleted the folder
        scratch.write_text(json.dumps(asdict(status)), encoding="utf-8")
        scratch.replace(folder / "status.json")


def main() -> None:
    """Runs `serve` for the arguments FOLDER and PID; PID is that of the writer, its parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the run handles Ctrl-C and reports how it ended
    environment.quiet()
    writer = int(sys.argv[2])
    serve(Path(sys.argv[1]), gone=lambda: os.getppid() != writer)


if __name__ == "__main__":
    main()
