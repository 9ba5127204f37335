"""Follows a run's log for MLflow in a separate process, so that training waits for no import, database or server.

A thread would share the interpreter's lock with training for the seconds that `import mlflow` takes. So events are
appended to a file in a scratch folder; the process (`serve`) reads the file, delivers the events and writes its status.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

from lwfed import environment
from lwfed.tracking.jsonlines import encode_event
from lwfed.tracking.mlflow import serve
from lwfed.tracking.mlflow.delivery import Status
from lwfed.tracking.mlflow.target import Target
from lwfed.tracking.protocol import Record

GRACE_S = 2.0
"""Seconds between terminating a process and killing it."""


class MlflowFollower:
    """A follower of a run's log; its calls only append to a file.

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
        self._sent = 0
        self._folder: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None

    def address(self) -> str:
        """Returns the URL of the run's page; empty if MLflow has no web pages, or has not answered yet."""
        uri, status = self._target.ui or self._target.uri, self.status
        if status.run_id is None or not uri.startswith(("http://", "https://")):
            return ""
        return f"{uri.rstrip('/')}/#/experiments/{status.experiment_id}/runs/{status.run_id}"

    def send(self, event: Record) -> None:
        """See `Follower.send`."""
        try:
            if event["event"] == "start" and self._process is None:
                self._open()
            if self._folder is None:
                return  # closed, or never started: the JSON-lines log has it
            self._sent += 1
            self._append(event)
        except OSError as error:
            self._give_up(str(error))
        self._read_status()

    def close(self, timeout: float = 60.0) -> None:
        """See `Follower.close`."""
        process, folder = self._process, self._folder
        if process is None or folder is None:
            return
        try:
            self._append({"event": "close"})
            process.wait(timeout)
            late = "" if process.returncode == 0 else _last_line(folder / "stderr.txt")
        except (OSError, subprocess.TimeoutExpired):
            late = f"no answer within {timeout:g} s"
            process.terminate()
            try:
                process.wait(GRACE_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._read_status(late=late)
        shutil.rmtree(folder, ignore_errors=True)
        self._process = self._folder = None

    def _open(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="lwfed-mlflow-"))
        (self._folder / "target.json").write_text(json.dumps(asdict(self._target)), encoding="utf-8")
        (self._folder / "events.jsonl").touch()
        path = os.pathsep.join(entry for entry in sys.path if entry)
        with (self._folder / "stderr.txt").open("wb") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", serve.__name__, str(self._folder), str(os.getpid())],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=environment.child_environment(PYTHONPATH=path),
            )

    def _append(self, event: Record) -> None:
        if self._folder is not None:
            with (self._folder / "events.jsonl").open("ab") as file:
                file.write(encode_event(event))

    def _read_status(self, *, late: str = "") -> None:
        if self._folder is None:
            return
        try:
            values = json.loads((self._folder / "status.json").read_bytes())
        except (OSError, ValueError):
            values = {}
        values = {**values, "told": self._sent, "refused": tuple(values.get("refused", ()))}
        if late and values.get("delivered") != self._sent:
            values["down"] = late
        self.status = Status(**values)
        self._warn(self.status.down or "; ".join(self.status.refused))

    def _give_up(self, problem: str) -> None:
        """Continues without MLflow, since the events cannot be written or the process cannot start."""
        self.status = replace(self.status, down=problem)
        self._warn(problem)
        if self._process is None and self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None

    def _warn(self, problem: str) -> None:
        if problem and not self._warned:
            self._warned = True
            self._on_warning(
                f"MLflow at {self._target.uri} does not accept the run's records ({problem}); "
                "the run continues, and its JSON-lines log is complete"
            )


def _last_line(path: Path) -> str:
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    except OSError:
        lines = []
    return lines[-1][:300] if lines else "its process ended early"
