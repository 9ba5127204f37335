"""Tells MLflow from a process of its own: training never waits for an import, a migration, a database or a server.

A thread would share the interpreter's lock with training for the seconds that `import mlflow` takes, and a data
loader's worker forked meanwhile could inherit a module lock that nobody will open. So the tracker only appends to a
file in a scratch folder; the process reads it, delivers, and writes how far it is. The process ends when the tracker
is closed, or when the process that made it is gone.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from lwfed import environment
from lwfed.tracking.jsonlines import dated, encode_event, read_events
from lwfed.tracking.mlflow.delivery import Delivery, Status
from lwfed.tracking.mlflow.target import Target
from lwfed.tracking.protocol import Record, event_of, event_of_failure, event_of_finish

POLL_S = 0.1
GRACE_S = 2.0
"""Seconds a process that was told to stop has."""


class MlflowTracker:
    """A tracker whose calls only append to a file.

    Args:
        target: Where in MLflow.
        on_warning: Told once, in one line, when MLflow cannot be reached.
    """

    def __init__(self, target: Target, *, on_warning: Callable[[str], None]) -> None:
        self._target = target
        self._on_warning = on_warning
        self._warned = False
        self._status = Status()
        self._told = 0
        self._folder: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def status(self) -> Status:
        """How far delivery was when it was last looked at; final after `close`."""
        return self._status

    def address(self) -> str:
        """Where people see the run of the experiment; empty where MLflow has no pages, or not answered yet."""
        uri, status = self._target.ui or self._target.uri, self._status
        if status.run_id is None or not uri.startswith(("http://", "https://")):
            return ""
        return f"{uri.rstrip('/')}/#/experiments/{status.experiment_id}/runs/{status.run_id}"

    def start(self, run: Record) -> None:
        """See `Tracker.start`."""
        try:
            if self._process is None:
                self._open()
        except OSError as error:
            self._give_up(str(error))
        self._write(event_of("start", run))

    def round(self, record: Record) -> None:
        """See `Tracker.round`."""
        self._write(event_of("round", record))

    def stage(self, record: Record) -> None:
        """See `Tracker.stage`."""
        self._write(event_of("stage", record))

    def finish(self, summary: Record, *, artifacts: Sequence[Path] = (), model: Record | None = None) -> None:
        """See `Tracker.finish`."""
        self._write(event_of_finish(summary, artifacts=artifacts, model=model))

    def fail(self, reason: str, *, cancelled: bool = False, closing: bool = False) -> None:
        """See `Tracker.fail`."""
        self._write(event_of_failure(reason, cancelled=cancelled, closing=closing))

    def close(self, timeout: float = 60.0) -> None:
        """See `Tracker.close`."""
        process, folder = self._process, self._folder
        if process is None or folder is None:
            return
        try:
            self._append(encode_event({"event": "close"}))
        except OSError:
            process.terminate()
        try:
            process.wait(timeout)
        except subprocess.TimeoutExpired:
            process.terminate()
            try:
                process.wait(GRACE_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            self._look(late=f"no answer within {timeout:g} s")
        else:
            self._look(late="" if process.returncode == 0 else _last_line(folder / "stderr.txt"))
        if process.stdin is not None:
            process.stdin.close()
        shutil.rmtree(folder, ignore_errors=True)
        self._process = self._folder = None

    def _open(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="lwfed-mlflow-"))
        (self._folder / "target.json").write_text(json.dumps(asdict(self._target)), encoding="utf-8")
        (self._folder / "events.jsonl").touch()
        path = os.pathsep.join(entry for entry in sys.path if entry)
        with (self._folder / "stderr.txt").open("wb") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "lwfed.tracking.mlflow.process", str(self._folder)],
                stdin=subprocess.PIPE,  # its end tells the process that we are gone
                stdout=output,
                stderr=output,
                env=environment.child_environment(PYTHONPATH=path),
            )

    def _write(self, event: Mapping[str, Any]) -> None:
        if self._folder is None:
            return  # closed, or never started: the JSON-lines log has it
        self._told += 1
        try:
            self._append(encode_event(dated(event)))
        except OSError as error:
            self._give_up(str(error))
        self._look()

    def _append(self, line: bytes) -> None:
        if self._folder is not None:
            with (self._folder / "events.jsonl").open("ab") as file:
                file.write(line)

    def _look(self, *, late: str = "") -> None:
        if self._folder is None:
            return
        try:
            values = json.loads((self._folder / "status.json").read_bytes())
        except (OSError, ValueError):
            values = {}
        values = {**values, "told": self._told, "refused": tuple(values.get("refused", ()))}
        if late and values.get("delivered") != self._told:
            values["down"] = late
        self._status = Status(**values)
        self._warn(self._status.down or "; ".join(self._status.refused))

    def _give_up(self, trouble: str) -> None:
        """Does without MLflow: there is no room for what waits, or no process for it."""
        self._status = replace(self._status, down=trouble)
        self._warn(trouble)
        if self._process is None and self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None

    def _warn(self, trouble: str) -> None:
        if trouble and not self._warned:
            self._warned = True
            self._on_warning(
                f"MLflow at {self._target.uri} does not take the run's records ({trouble}); "
                "the run goes on, its JSON-lines log has everything"
            )


def serve(folder: Path, *, gone: threading.Event) -> None:
    """Delivers what is appended to `events.jsonl` until it says `close`, or until the writer is gone.

    Args:
        folder: Holds `target.json` and `events.jsonl`; `status.json` is written there.
        gone: Set when the process that writes has ended.
    """
    target = Target(**json.loads((folder / "target.json").read_bytes()))
    delivery = Delivery(target)
    offset, closing, ended = 0, False, False
    written: Status | None = None
    while True:
        lost = gone.is_set()
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
            delivery.abandon()  # an error that nobody foresaw
        if closing or lost:
            break
        if not whole:
            gone.wait(POLL_S)
    delivery.close()
    _publish(folder, delivery.status())
    if gone.is_set():
        shutil.rmtree(folder, ignore_errors=True)


def _is_end(event: Mapping[str, Any], *, stage: int | None) -> bool:
    """Whether a process with some part of a run has told all it is to tell."""
    if event["event"] == "stage":
        return stage is not None and event["record"]["stage"] == stage
    return event["event"] in ("finish", "fail")


def main() -> None:
    """Runs as `python -m lwfed.tracking.mlflow.process FOLDER`."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the run; it tells us how it ended
    environment.quiet()
    gone = threading.Event()

    def wait_for_end() -> None:
        while os.read(0, 1024):  # the file itself: a buffered reader would be locked when the interpreter ends
            pass
        gone.set()

    threading.Thread(target=wait_for_end, daemon=True).start()
    serve(Path(sys.argv[1]), gone=gone)


def _publish(folder: Path, status: Status) -> None:
    scratch = folder / "status.tmp"
    try:
        scratch.write_text(json.dumps(status.values()), encoding="utf-8")
        scratch.replace(folder / "status.json")
    except OSError:  # the folder went with the process that made it
        pass


def _last_line(path: Path) -> str:
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    except OSError:
        lines = []
    return lines[-1][:300] if lines else "its process ended early"


if __name__ == "__main__":
    main()
