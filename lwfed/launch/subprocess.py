"""Clients as processes of this machine, several at a time; through torchrun where a client has several devices.

A client's process runs `lwfed step ... --task FILE`, writes one JSON object a line of progress to its standard output
and its log to a file, and ends by itself when the process that started it is gone.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from lwfed.environment import child_environment
from lwfed.launch.in_process import InProcess
from lwfed.steps.launcher import Emit, Outcome
from lwfed.steps.tasks import PoolTask, ServerTask
from lwfed.steps.workbench import Workbench
from lwfed.types.errors import FINAL_CODES, SHARED_CODES, error_of, exit_name

GRACE_S = 5.0
"""Seconds between asking a process to end and ending it."""


@dataclass(slots=True)
class _Child:
    task: PoolTask
    attempt: int
    process: subprocess.Popen[str]
    log: Path
    failure: tuple[int, str] | None = None


class Subprocess:
    """The launcher of operating-system processes.

    Args:
        bench: The coordinator's bench, for the server's part.
        parallel: Clients at a time.
        devices: Devices a client.
        retries: Tries again for a client that died of something a second try may not meet.
    """

    remote = False

    def __init__(self, bench: Workbench, *, parallel: int, devices: int, retries: int) -> None:
        self._server = InProcess(bench)
        self._parallel, self._devices, self._retries = parallel, devices, retries

    def clients(self, step: str, tasks: Sequence[PoolTask], *, deadline_s: float, emit: Emit) -> Iterator[Outcome]:
        """Runs tasks, `parallel` at a time; see `Launcher.clients`."""
        ends_at = time.monotonic() + deadline_s
        waiting = deque((task, 1) for task in tasks)
        running: dict[int, _Child] = {}
        news: queue.SimpleQueue[tuple[int, str | None]] = queue.SimpleQueue()
        with tempfile.TemporaryDirectory(prefix="lwfed-") as folder:
            try:
                while waiting or running:
                    while waiting and len(running) < self._parallel:
                        task, attempt = waiting.popleft()
                        child = self._start(step, task, attempt, Path(folder), news)
                        running[child.process.pid] = child
                        emit("client_started", {"client": task.client, "step": step, "attempt": attempt})
                    left = ends_at - time.monotonic()
                    if left <= 0:
                        break
                    try:
                        pid, line = news.get(timeout=left)
                    except queue.Empty:
                        break
                    if line is not None:
                        _tell(running[pid], line, emit)
                        continue
                    child = running.pop(pid)
                    outcome = _outcome(child)
                    if outcome.exit_code and outcome.exit_code not in FINAL_CODES and child.attempt <= self._retries:
                        emit("client_log", {"client": child.task.client, "line": f"tried again: {outcome.reason}"})
                        waiting.append((child.task, child.attempt + 1))
                        continue
                    if outcome.exit_code in SHARED_CODES:
                        raise error_of(outcome.exit_code, f"{outcome.client}: {outcome.reason}")
                    yield outcome
                late = [child.task.client for child in running.values()] + [task.client for task, _ in waiting]
            finally:
                _end([child.process for child in running.values()])
            for client in late:
                yield Outcome(client, 1, f"not done before the deadline of {deadline_s:g} s")

    def server(self, step: str, task: ServerTask, *, emit: Emit) -> None:
        """Runs the server's step in the coordinator's process."""
        self._server.server(step, task, emit=emit)

    def close(self) -> None:
        """Has nothing to let go of: `clients` ends what it started."""

    def _start(
        self, step: str, task: PoolTask, attempt: int, folder: Path, news: queue.SimpleQueue[tuple[int, str | None]]
    ) -> _Child:
        path = folder / f"{task.client}-{attempt}.json"
        path.write_text(task.model_copy(update={"parent_pid": os.getpid()}).model_dump_json(), encoding="utf-8")
        log = path.with_suffix(".log")
        command = [sys.executable, "-m", "lwfed", "step", step, "--task", str(path), "--json"]
        if self._devices > 1 and step == "train-client":
            run = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={self._devices}"]
            command = [sys.executable, *run, "-m", "lwfed", *command[3:]]
        with log.open("w", encoding="utf-8") as stream:
            process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=stream, stdin=subprocess.DEVNULL, text=True,
                start_new_session=True, env=child_environment(),
            )  # fmt: skip
        threading.Thread(target=_listen, args=(process, news), daemon=True).start()
        return _Child(task=task, attempt=attempt, process=process, log=log)


def _listen(process: subprocess.Popen[str], news: queue.SimpleQueue[tuple[int, str | None]]) -> None:
    """Passes a process's lines on, and then None: it has ended."""
    if process.stdout is not None:
        with process.stdout:
            for line in process.stdout:
                news.put((process.pid, line))
    process.wait()
    news.put((process.pid, None))


def _tell(child: _Child, line: str, emit: Emit) -> None:
    try:
        event = json.loads(line)
        kind, values = event["event"], event["values"]
    except (ValueError, KeyError, TypeError):
        emit("client_log", {"client": child.task.client, "line": line.rstrip()})
        return
    if kind == "failed":  # torchrun hides its processes' exit codes
        child.failure = (values["exit_code"], values["message"])
        return
    emit(kind, values)


def _outcome(child: _Child) -> Outcome:
    code = child.process.returncode
    if code == 0:
        return Outcome(child.task.client)
    if child.failure is not None:
        return Outcome(child.task.client, child.failure[0], child.failure[1])
    lines = [line for line in child.log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    named = [line for line in lines if line.startswith("error: ")]
    last = named[-1].removeprefix("error: ") if named else (lines[-1] if lines else "it left no word")
    return Outcome(child.task.client, code, f"{exit_name(code)}: {last}")


def _end(processes: Sequence[subprocess.Popen[str]]) -> None:
    """Asks process groups to end, and ends those that do not."""
    for sign in (signal.SIGTERM, signal.SIGKILL):
        for process in processes:
            if process.poll() is None:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, sign)
        ends_at = time.monotonic() + GRACE_S
        while any(process.poll() is None for process in processes) and time.monotonic() < ends_at:
            time.sleep(0.02)
