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
from dataclasses import asdict
from pathlib import Path

from lwfed import environment
from lwfed.tracking.jsonlines import read_events
from lwfed.tracking.mlflow.delivery import Delivery, Status
from lwfed.tracking.mlflow.target import Target

POLL_S = 0.1


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
            over = gone()
            *lines, torn = (torn + file.read()).split(b"\n")
            for event in read_events(b"\n".join(lines)):
                if event["event"] == "close":
                    over = True
                else:
                    delivery.add(event)
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


def _publish(folder: Path, status: Status) -> None:
    scratch = folder / "status.tmp"
    with suppress(OSError):  # the run's process has deleted the folder
        scratch.write_text(json.dumps(asdict(status)), encoding="utf-8")
        scratch.replace(folder / "status.json")


def main() -> None:
    """Runs as `python -m lwfed.tracking.mlflow.serve FOLDER PID`; PID is that of the writer, its parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the run handles Ctrl-C and reports how it ended
    environment.quiet()
    writer = int(sys.argv[2])
    serve(Path(sys.argv[1]), gone=lambda: os.getppid() != writer)


if __name__ == "__main__":
    main()
