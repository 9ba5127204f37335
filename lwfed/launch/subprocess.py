"""Clients as processes of this machine, several at a time; through torchrun where a client has several devices.

A client's process runs `lwfed step ... --task FILE`, writes one JSON object a line of progress to its standard output
and its log to a file, and ends by itself when the process that started it is gone. It is forked from a template that
has imported torch already (`launch.template`), or started anew where that cannot be.
"""

from __future__ import annotations

import heapq
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
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from lwfed.catalog.launchers.subprocess import DESCRIPTION
from lwfed.environment import child_environment, only_gpus
from lwfed.launch.devices import check_devices, gpus_here, gpus_of
from lwfed.launch.in_process import InProcess
from lwfed.launch.template import CAN_FORK, LOST, Forked, Template, TemplateError
from lwfed.round.workbench import Workbench
from lwfed.run.launcher import Emit, Outcome
from lwfed.run.tasks import PoolTask, ServerTask
from lwfed.spec.run import RunSpec
from lwfed.store.protocol import Store
from lwfed.types.errors import FINAL_CODES, SHARED_CODES, error_of, exit_name

GRACE_S = 5.0
"""Seconds between asking a process to end and ending it."""
News = queue.SimpleQueue[tuple[int, str | None]]
"""(Slot, line) as clients write them; (slot, None) when one has ended."""


@dataclass(frozen=True, slots=True)
class _Start:
    """What a client's process is started with: its task's file and its log lie in the folder."""

    step: str
    task: PoolTask
    attempt: int
    gpus: tuple[str, ...]
    folder: Path

    @property
    def path(self) -> Path:
        return self.folder / f"{self.task.client}-{self.attempt}.json"

    @property
    def log(self) -> Path:
        return self.path.with_suffix(".log")

    def told(self) -> dict[str, Any]:
        """What is told of it."""
        told = {"client": self.task.client, "step": self.step, "attempt": self.attempt}
        return {**told, "gpus": list(self.gpus)} if self.gpus else told


@dataclass(slots=True)
class _Child:
    start: _Start
    process: subprocess.Popen[str] | Forked
    failure: tuple[int, str] | None = None
    ended: threading.Event = field(default_factory=threading.Event)

    @property
    def lost(self) -> bool:
        """Whether nobody can say how it ended."""
        return self.process.returncode == LOST and self.failure is None


def make(spec: RunSpec, *, store: Store, run_id: str) -> Subprocess:
    """Makes the launcher; see `launchers.make_launcher`."""
    launch = spec.launch
    gpus = gpus_here(launch.device)
    check_devices(launch.devices, gpus=gpus)
    return Subprocess(
        Workbench(store), parallel=launch.parallel, devices=launch.devices, retries=launch.retries, gpus=gpus
    )


class Subprocess:
    """The launcher of operating-system processes.

    Args:
        bench: The coordinator's bench, for the server's part.
        parallel: Clients at a time. Each has a slot, which the next client takes over with its GPUs.
        devices: Devices a client.
        retries: Tries again for a client that died of something a second try may not meet.
        gpus: Names of the GPUs that the slots share; none: clients are told nothing of GPUs.
        fork: Whether clients are forked from a template.
    """

    remote = DESCRIPTION.remote

    def __init__(
        self,
        bench: Workbench,
        *,
        parallel: int,
        devices: int,
        retries: int,
        gpus: Sequence[str] = (),
        fork: bool = CAN_FORK,
    ) -> None:
        self._server = InProcess(bench.store)
        self._parallel, self._devices, self._retries = parallel, devices, retries
        self._gpus, self._fork = tuple(gpus), fork
        self._template: Template | None = None

    def clients(self, step: str, tasks: Sequence[PoolTask], *, deadline_s: float, emit: Emit) -> Iterator[Outcome]:
        """Runs tasks, `parallel` at a time; see `Launcher.clients`."""
        ends_at = time.monotonic() + deadline_s
        waiting = deque((task, 1) for task in tasks)
        running: dict[int, _Child] = {}
        free = list(range(self._parallel))
        news: News = queue.SimpleQueue()
        with tempfile.TemporaryDirectory(prefix="lwfed-") as folder:
            try:
                while waiting or running:
                    while waiting and free and time.monotonic() < ends_at:
                        (task, attempt), slot = waiting[0], free[0]
                        gpus = gpus_of(slot, devices=self._devices, gpus=self._gpus)
                        start = _Start(step, task, attempt, gpus=gpus, folder=Path(folder))
                        try:
                            process = self._start(start, timeout_s=ends_at - time.monotonic(), emit=emit)
                        except TimeoutError:
                            break
                        running[slot] = _Child(start, process)
                        threading.Thread(target=_listen, args=(slot, running[slot], news), daemon=True).start()
                        waiting.popleft()
                        heapq.heappop(free)
                        emit("client_started", start.told())
                    left = ends_at - time.monotonic()
                    if left <= 0:
                        break
                    try:
                        slot, line = news.get(timeout=left)
                    except queue.Empty:
                        break
                    if line is not None:
                        _tell(running[slot], line, emit)
                        continue
                    child = running.pop(slot)
                    heapq.heappush(free, slot)
                    outcome, attempt = _outcome(child), child.start.attempt
                    may_help = outcome.exit_code not in FINAL_CODES and attempt <= self._retries
                    if outcome.exit_code and (may_help or child.lost):
                        emit("client_log", {"client": outcome.client, "line": f"tried again: {outcome.reason}"})
                        waiting.append((child.start.task, attempt + (not child.lost)))
                        continue
                    if outcome.exit_code in SHARED_CODES:
                        raise error_of(outcome.exit_code, f"{outcome.client}: {outcome.reason}")
                    yield outcome
                late = [child.start.task.client for child in running.values()] + [task.client for task, _ in waiting]
            finally:
                _end(list(running.values()))
            for client in late:
                yield Outcome(client, 1, f"not done before the deadline of {deadline_s:g} s")

    def server(self, step: str, task: ServerTask, *, emit: Emit) -> None:
        """Runs the server's step in the coordinator's process."""
        self._server.server(step, task, emit=emit)

    def close(self) -> None:
        """Ends the template; `clients` ends what it started."""
        if self._template is not None:
            self._template.close()
            self._template = None

    def _start(self, start: _Start, *, timeout_s: float, emit: Emit) -> subprocess.Popen[str] | Forked:
        """Starts a client's process. Raises TimeoutError where the template takes too long."""
        task = start.task.model_copy(update={"parent_pid": os.getpid()})
        start.path.write_text(task.model_dump_json(), encoding="utf-8")
        joined = self._devices > 1 and start.step == "train-client"
        with start.log.open("w", encoding="utf-8") as errors:
            if self._fork and not joined:
                try:
                    return self._forked(start, errors=errors, timeout_s=timeout_s)
                except TemplateError as error:
                    self._fork = False
                    slower = f"each client imports torch by itself from now on: their template ended ({error})"
                    emit("warning", {"message": slower})
            run = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={self._devices}"] if joined else []
            return subprocess.Popen(
                [sys.executable, *run, "-m", "lwfed", "step", start.step, "--task", str(start.path), "--json"],
                stdout=subprocess.PIPE, stderr=errors, stdin=subprocess.DEVNULL, text=True, start_new_session=True,
                env=child_environment(**only_gpus(start.gpus)),
            )  # fmt: skip

    def _forked(self, start: _Start, *, errors: IO[str], timeout_s: float) -> Forked:
        template, self._template = self._template or Template(), None
        process = template.fork(
            start.step, start.path, name=start.task.client, errors=errors, variables=only_gpus(start.gpus),
            timeout_s=timeout_s,
        )  # fmt: skip
        self._template = template  # of use as long as nothing was raised
        return process


def _listen(slot: int, child: _Child, news: News) -> None:
    """Passes a client's lines on, and then None: it has ended."""
    if child.process.stdout is not None:
        with child.process.stdout as lines:
            for line in lines:
                news.put((slot, line))
    child.process.wait()
    child.ended.set()
    news.put((slot, None))


def _tell(child: _Child, line: str, emit: Emit) -> None:
    try:
        event = json.loads(line)
        kind, values = event["event"], event["values"]
    except (ValueError, KeyError, TypeError):
        emit("client_log", {"client": child.start.task.client, "line": line.rstrip()})
        return
    if kind == "failed":  # torchrun hides its processes' exit codes
        child.failure = (values["exit_code"], values["message"])
        return
    emit(kind, values)


def _outcome(child: _Child) -> Outcome:
    client, code = child.start.task.client, child.process.returncode
    if code == 0:
        return Outcome(client)
    if child.failure is not None:
        return Outcome(client, child.failure[0], child.failure[1])
    lines = [
        line for line in child.start.log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()
    ]
    named = [line for line in lines if line.startswith("error: ")]
    last = named[-1].removeprefix("error: ") if named else (lines[-1] if lines else "it left no word")
    return Outcome(client, code, f"{'its template died' if child.lost else exit_name(code)}: {last}")


def _end(children: Sequence[_Child]) -> None:
    """Asks process groups to end, and ends those that do not."""
    for sign in (signal.SIGTERM, signal.SIGKILL):
        for child in children:
            if not child.ended.is_set():
                with suppress(ProcessLookupError):
                    os.killpg(child.process.pid, sign)
        ends_at = time.monotonic() + GRACE_S
        for child in children:
            child.ended.wait(max(0.0, ends_at - time.monotonic()))
