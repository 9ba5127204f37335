"""Follows a run's log for MLflow in a separate process, so that training waits for no import, database or server.

A thread would share the interpreter's lock with training for the seconds that `import mlflow` takes. So events are
appended to a file in a scratch folder; the process (`delivery.serve`) reads the file, delivers the events and writes
its status.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path

from lwfed import environment
from lwfed.tracking.jsonlines import Record, encode_event
from lwfed.tracking.mlflow import delivery
from lwfed.tracking.mlflow.delivery import Status
from lwfed.tracking.mlflow.target import Target


class MlflowFollower:
    """A follower of a run's log. Its calls only append to a file: none raises, and only `close` waits for a server.

    Args:
        target: The place in MLflow.
        on_warning: Called once, with one line, if MLflow does not accept the records.

    Attributes:
        status: The state of delivery when it was last read; final after `close`.
    """

    def __init__(self, target: Target, *, on_warning: Callable[[str], None]) -> None:
        self._target = target
        self._on_warning = on_warning
        self._warned = False
        self.status = Status()
        self._folder: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None

    def address(self) -> str:
        """Returns the URL of the run's page; empty if MLflow has no web pages, or has not answered yet."""
        uri, status = self._target.ui or self._target.uri, self.status
        if status.run_id is None or not uri.startswith(("http://", "https://")):
            return ""
        return f"{uri.rstrip('/')}/#/experiments/{status.experiment_id}/runs/{status.run_id}"

    def send(self, event: Record) -> None:
        """Passes an event on; the first one is a start. None is passed on after `close`: the run's log has it."""
        try:
            if event["event"] == "start" and self._folder is None:
                self._folder = Path(tempfile.mkdtemp(prefix="lwfed-mlflow-"))
                self._process = self._open(self._folder)
            if self._folder is not None:
                self.status = replace(self.status, told=self.status.told + 1)
                _append(self._folder, event)
                self._read_status(self._folder)
        except OSError as error:  # events cannot be written, or the process cannot start
            self._show(replace(self.status, down=str(error)))

    def close(self, timeout: float = 60.0) -> None:
        """Waits at most `timeout` seconds until all events are delivered, and ends the process."""
        process, folder = self._process, self._folder
        self._process = self._folder = None
        if folder is None:
            return
        if process is not None:
            late = ""
            try:
                _append(folder, {"event": "close"})
                if process.wait(timeout) != 0:
                    late = _last_line(folder / "stderr.txt")
            except (OSError, subprocess.TimeoutExpired):
                late = f"no answer within {timeout:g} s"
                process.kill()
                process.wait()
            self._read_status(folder, late=late)
        shutil.rmtree(folder, ignore_errors=True)

    def _open(self, folder: Path) -> subprocess.Popen[bytes]:
        (folder / "target.json").write_text(json.dumps(asdict(self._target)), encoding="utf-8")
        (folder / "events.jsonl").touch()
        with (folder / "stderr.txt").open("wb") as output:
            return subprocess.Popen(
                [sys.executable, "-P", "-m", delivery.__name__, str(folder), str(os.getpid())],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=environment.child_environment(**environment.import_path()),
            )

    def _read_status(self, folder: Path, *, late: str = "") -> None:
        told, status = self.status.told, self.status
        with suppress(OSError):  # the process has not written any yet
            values = json.loads((folder / "status.json").read_bytes())
            status = Status(**{**values, "told": told, "refused": tuple(values["refused"])})
        self._show(replace(status, down=late) if late and status.delivered != told else status)

    def _show(self, status: Status) -> None:
        self.status = status
        problem = status.down or "; ".join(status.refused)
        if problem and not self._warned:
            self._warned = True
            self._on_warning(
                f"MLflow at {self._target.uri} does not accept the run's records ({problem}); "
                "the run continues, and its JSON-lines log is complete"
            )


def _append(folder: Path, event: Record) -> None:
    with (folder / "events.jsonl").open("ab") as file:
        file.write(encode_event(event))


def _last_line(path: Path) -> str:
    lines = path.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1][:300] if lines else "its process ended early"
