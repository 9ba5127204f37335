"""Follows a run's log for MLflow, in a process of its own: training waits for no import, database or server.

A thread would share the interpreter's lock with training for the seconds that `import mlflow` takes, and a data
loader's worker forked meanwhile could inherit a module lock that nobody will release. So the events are appended to a
file in a scratch folder; the process (`serve`) reads it, delivers, and writes how far it is.
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
"""Seconds that a process has to end after it was asked to."""


class MlflowFollower:
    """A follower of a run's log, whose calls only append to a file.

    Args:
        target: Where in MLflow.
        on_warning: Called once, with one line, when MLflow does not take the records.

    Attributes:
        status: How far delivery was when it was last looked at; final after `close`.
    """

    def __init__(self, target: Target, *, on_warning: Callable[[str], None]) -> None:
        self._target = target
        self._on_warning = on_warning
        self._warned = False
        self.status = Status()
        self._told = 0
        self._folder: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None

    def address(self) -> str:
        """Where people see the run of the experiment; empty where MLflow has no pages, or has not answered yet."""
        uri, status = self._target.ui or self._target.uri, self.status
        if status.run_id is None or not uri.startswith(("http://", "https://")):
            return ""
        return f"{uri.rstrip('/')}/#/experiments/{status.experiment_id}/runs/{status.run_id}"

    def tell(self, event: Record) -> None:
        """See `Follower.tell`."""
        try:
            if event["event"] == "start" and self._process is None:
                self._open()
            if self._folder is None:
                return  # closed, or never started: the JSON-lines log has it
            self._told += 1
            self._append(event)
        except OSError as error:
            self._give_up(str(error))
        self._look()

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
        self._look(late=late)
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
        self.status = Status(**values)
        self._warn(self.status.down or "; ".join(self.status.refused))

    def _give_up(self, trouble: str) -> None:
        """Does without MLflow: there is no room for what waits, or no process for it."""
        self.status = replace(self.status, down=trouble)
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


def _last_line(path: Path) -> str:
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    except OSError:
        lines = []
    return lines[-1][:300] if lines else "its process ended early"
