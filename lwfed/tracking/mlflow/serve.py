"""The process that delivers a run's events to MLflow until the event `close`, or until the run's process is gone."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from lwfed import environment
from lwfed.tracking.jsonlines import read_events
from lwfed.tracking.mlflow.delivery import Delivery, Status
from lwfed.tracking.mlflow.target import Target
from lwfed.tracking.protocol import Record

POLL_S = 0.1


def serve(folder: Path, *, gone: Callable[[], bool]) -> None:
    """Delivers the events appended to `events.jsonl` until `close`, or until the writer is gone.

    Args:
        folder: Contains `target.json` and `events.jsonl`; receives `status.json`.
        gone: Whether the writing process has ended.
    """
    target = Target(**json.loads((folder / "target.json").read_bytes()))
    delivery = Delivery(target)
    offset, closing, ended = 0, False, False
    written: Status | None = None
    while True:
        lost = gone()
        with (folder / "events.jsonl").open("rb") as file:
            file.seek(offset)
            data = file.read()
        whole = data[: data.rfind(b"\n") + 1]
        offset += len(whole)
        for event in read_events(whole):
            closing = closing or event["event"] == "close"
            ended = ended or _is_end(event, stage=target.stage)
            if event["event"] != "close":
                delivery.add(event)
        if lost and not closing and not ended:
            delivery.abandon()
            break
        delivery.drain(now=closing or lost)
        if delivery.status() != written:
            written = delivery.status()
            _publish(folder, written)
        if closing and not ended:
            delivery.abandon()  # after an unexpected error
        if closing or lost:
            break
        if not whole:
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
        scratch.write_text(json.dumps(status.values()), encoding="utf-8")
        scratch.replace(folder / "status.json")


def main() -> None:
    """Runs as `python -m lwfed.tracking.mlflow.serve FOLDER PID`; PID is that of the writer, its parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the run handles Ctrl-C and reports how it ended
    environment.quiet()
    writer = int(sys.argv[2])
    serve(Path(sys.argv[1]), gone=lambda: os.getppid() != writer)


if __name__ == "__main__":
    main()
