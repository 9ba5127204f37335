"""Runs clients in processes of this machine, several at a time; by torchrun if a client has several devices.

Each slot has a process that serves one client after another (`launch.worker`), so that only its first client waits for
torch to be imported and the data to be opened. Slots share neither: each takes half a GB. A process is replaced when
its client is late, dies, or fails in a way that a second try may avoid. With several devices, each client gets its own
processes from torchrun, which run `lwfed step`. All processes end when the coordinator ends, for whatever reason.
"""

from __future__ import annotations

import itertools
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
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from lwfed import cpus
from lwfed.catalog.launchers.subprocess import DESCRIPTION
from lwfed.environment import child_environment, named_gpus, only_cpus, only_gpus
from lwfed.launch import worker
from lwfed.launch.exits import last_words
from lwfed.launch.in_process import InProcess
from lwfed.run.events import ClientLog, ClientStarted, Emit, read_event
from lwfed.run.launcher import Outcome
from lwfed.run.tasks import Device, PoolTask, ServerTask
from lwfed.spec.run import RunSpec
from lwfed.store.protocol import Store
from lwfed.types.errors import FINAL_CODES, SHARED_CODES, SpecError, error_of

GRACE_S = 5.0
"""Seconds between SIGTERM and SIGKILL."""
NO_MESSAGE = {
    -signal.SIGKILL: "no message; the system does so when memory runs out: lower launch.parallel or batch_size"
}
"""What to say of a process that ended without a message, by its exit code."""
Lines = queue.SimpleQueue[tuple["_Process", str | None]]
"""Lines of the processes' output; None when a process has ended."""


@dataclass(frozen=True, eq=False, slots=True)
class _Process:
    """A process and its group; it is a worker if it has a standard input.

    Attributes:
        popen: The process.
        log: The file with its standard error.
        ended: Set when the process has ended and all its output has been read.
    """

    popen: subprocess.Popen[str]
    log: Path
    ended: threading.Event = field(default_factory=threading.Event)


@dataclass(slots=True)
class _Client:
    """A client at work.

    Attributes:
        task: Its task.
        slot: Its slot.
        attempt: The number of this try, from 1.
        log_start: Offset in bytes of its part of the process's log.
        failure: The exit code and message that the process reported.
    """

    task: PoolTask
    slot: int
    attempt: int
    log_start: int
    failure: tuple[int, str] | None = None


def make(spec: RunSpec, *, store: Store, run_id: str) -> Subprocess:
    """Makes the launcher; see `launchers.make_launcher`."""
    launch = spec.launch
    gpus = gpus_here(launch.device)
    if gpus and launch.devices > len(gpus):
        raise SpecError(
            f"`launch.devices` is {launch.devices} and this process sees {len(gpus)} GPU(s): {', '.join(gpus)}",
            remedy=f"set launch.devices={len(gpus)} or less, or launch.device=cpu",
        )
    return Subprocess(store, parallel=launch.parallel, devices=launch.devices, retries=launch.retries, gpus=gpus)


class Subprocess:
    """The launcher of operating-system processes; the slots share the CPUs equally.

    Args:
        store: The run's store, for the server's part.
        parallel: Clients at a time. Each has a slot with its own process and GPUs.
        devices: Devices per client.
        retries: Further tries for a client that failed in a way that a second try may avoid.
        gpus: Names of the GPUs that the slots share; if empty, processes see the GPUs that this one sees.
    """

    remote = DESCRIPTION.remote
    held = None

    def __init__(self, store: Store, *, parallel: int, devices: int, retries: int, gpus: Sequence[str] = ()) -> None:
        self._server = InProcess(store)
        self._parallel, self._devices, self._retries, self._gpus = parallel, devices, retries, tuple(gpus)
        self._workers: dict[int, _Process] = {}
        self._lines: Lines = queue.SimpleQueue()
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._numbers = itertools.count()

    def clients(
        self, step: str, tasks: Sequence[PoolTask], *, deadline_s: float, emit: Emit, need: int | None = None
    ) -> Iterator[Outcome]:
        """Runs tasks, `parallel` at a time; see `Launcher.clients`."""
        ends_at = time.monotonic() + deadline_s
        waiting = deque((task, 1) for task in tasks)
        running: dict[_Process, _Client] = {}
        missing = len(tasks) if need is None else need
        try:
            while missing > 0 and (waiting or running) and (left := ends_at - time.monotonic()) > 0:
                if waiting and len(running) < self._parallel:
                    task, attempt = waiting.popleft()
                    self._start(step, task, attempt=attempt, running=running, emit=emit)
                    continue
                try:
                    process, line = self._lines.get(timeout=left)
                except queue.Empty:
                    break
                if process not in running or not _is_over(running[process], line, emit):
                    continue
                client = running.pop(process)
                outcome = _outcome(client, None if line is not None else process)
                if outcome.exit_code not in {0, *FINAL_CODES} and client.attempt <= self._retries:
                    emit(ClientLog(client=outcome.client, line=f"tried again: {outcome.reason}"))
                    waiting.append((client.task, client.attempt + 1))
                    continue
                if outcome.exit_code in SHARED_CODES:
                    raise error_of(outcome.exit_code, f"{outcome.client}: {outcome.reason}")
                missing -= outcome.exit_code == 0
                yield outcome
            late = [client.task.client for client in running.values()] + [task.client for task, _ in waiting]
        finally:
            _end(running)
            self._workers = {slot: process for slot, process in self._workers.items() if process not in running}
        for client_id in late if missing > 0 else ():
            yield Outcome(client_id, 1, f"not done before the deadline of {deadline_s:g} s")

    def server(self, step: str, task: ServerTask, *, emit: Emit) -> None:
        """Runs the server's step in the coordinator's process."""
        self._server.server(step, task, emit=emit)

    def close(self) -> None:
        """Ends the workers."""
        _end(self._workers.values())
        self._workers = {}
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None

    def _start(self, step: str, task: PoolTask, *, attempt: int, running: dict[_Process, _Client], emit: Emit) -> None:
        """Starts a client in the first free slot."""
        slot = min(set(range(self._parallel)) - {client.slot for client in running.values()})
        gpus = gpus_of(slot, devices=self._devices, gpus=self._gpus)
        task = task.model_copy(update={"parent_pid": os.getpid()})
        if self._devices > 1 and step == "train-client":
            process = self._torchrun(step, task, gpus=gpus)
        else:
            process = self._worker(slot, {"step": step, "task": task.model_dump(mode="json")}, gpus=gpus)
        running[process] = _Client(task, slot, attempt, log_start=process.log.stat().st_size)
        emit(ClientStarted(client=task.client, step=step, attempt=attempt, gpus=tuple(gpus)))

    def _worker(self, slot: int, request: dict[str, Any], *, gpus: Sequence[str]) -> _Process:
        """Sends a request to a slot's worker, or to a new one if there is none or it has ended."""
        process = self._workers.get(slot)
        if process is None or process.ended.is_set() or not _wrote(process, request):
            command = ["-m", worker.__name__, str(os.getpid())]
            process = self._workers[slot] = self._open(command, gpus=gpus, stdin=subprocess.PIPE)
            _wrote(process, request)  # if this one has ended already too, its log says why
        return process

    def _torchrun(self, step: str, task: PoolTask, *, gpus: Sequence[str]) -> _Process:
        """Starts a client on several devices."""
        file = self._new_file(".json")
        file.write_text(task.model_dump_json(), encoding="utf-8")
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={self._devices}"]
        command = [*launcher, "-m", "lwfed", "step", step, "--task", str(file), "--json"]
        return self._open(command, gpus=gpus, stdin=subprocess.DEVNULL)

    def _open(self, command: Sequence[str], *, gpus: Sequence[str], stdin: int) -> _Process:
        log = self._new_file(".log")
        with log.open("wb") as errors:
            popen = subprocess.Popen(
                [sys.executable, *command], stdin=stdin, stdout=subprocess.PIPE, stderr=errors, text=True,
                encoding="utf-8", errors="replace", start_new_session=True,
                env=child_environment(**only_gpus(gpus), **only_cpus(max(1, cpus.usable() // self._parallel))),
            )  # fmt: skip
        process = _Process(popen, log)
        threading.Thread(target=_listen, args=(process, self._lines), daemon=True).start()
        return process

    def _new_file(self, suffix: str) -> Path:
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="lwfed-")
        return Path(self._folder.name) / f"{next(self._numbers)}{suffix}"


def gpus_here(device: Device) -> tuple[str, ...]:
    """Returns the names of the GPUs that clients of this process may use, without initialising one.

    Args:
        device: The spec's device; for `cpu` torch is not queried.

    Returns:
        Numbers, or the names that this process's own environment lists; empty without GPUs.
    """
    return () if device == "cpu" else names_of(torch.cuda.device_count(), named=named_gpus())


def names_of(count: int, *, named: Sequence[str] | None) -> tuple[str, ...]:
    """Returns the names under which a child process must receive GPUs.

    Args:
        count: The number of GPUs that this process sees.
        named: The names that its environment lists; None: it lists none, and the process sees all. A GPU listed after
            an unknown name is not visible, so the first `count` names are the right ones.
    """
    return tuple(str(number) for number in range(count)) if named is None else tuple(named[:count])


def gpus_of(slot: int, *, devices: int, gpus: Sequence[str]) -> tuple[str, ...]:
    """Returns the GPUs of a slot: the next ones after those of the slot before, wrapping around at the last.

    Args:
        slot: k, counted from 0.
        devices: Devices per client, no more than there are GPUs.
        gpus: All GPUs; if empty, the result is empty.
    """
    return tuple(gpus[(slot * devices + n) % len(gpus)] for n in range(devices)) if gpus else ()


def _wrote(process: _Process, request: dict[str, Any]) -> bool:
    """Writes a request to a worker; False if the worker has ended."""
    try:
        assert process.popen.stdin is not None
        process.popen.stdin.write(json.dumps(request) + "\n")
        process.popen.stdin.flush()
    except (OSError, ValueError):  # it has ended; ValueError: `_listen` has closed its input already
        return False
    return True


def _listen(process: _Process, lines: Lines) -> None:
    """Puts a process's lines into the queue, and None when it has ended."""
    popen = process.popen
    assert popen.stdout is not None
    with popen.stdout as output:
        for line in output:
            lines.put((process, line))
    popen.wait()
    if popen.stdin is not None:
        with suppress(OSError):
            popen.stdin.close()
    process.ended.set()
    lines.put((process, None))


def _is_over(client: _Client, line: str | None, emit: Emit) -> bool:
    """Emits the event on a line of a client's process; returns whether the client has finished."""
    if line is None:
        return True
    try:
        event = json.loads(line)
        kind, values = event["event"], event["values"]
        if kind == "failed":
            client.failure = (values["exit_code"], values["message"])
        elif kind != "ready":
            emit(read_event(kind, values))
    except (ValueError, KeyError, TypeError):  # a library wrote something; pydantic's error is a ValueError
        emit(ClientLog(client=client.task.client, line=line.rstrip()))
        return False
    return bool(kind == "ready")


def _outcome(client: _Client, process: _Process | None) -> Outcome:
    """Returns how a client ended; `process` is its process if that ended too."""
    name = client.task.client
    if client.failure is not None:
        return Outcome(name, *client.failure)
    if process is None or (process.popen.returncode == 0 and process.popen.stdin is None):
        return Outcome(name)
    code = process.popen.returncode or 1  # a healthy worker writes `ready` and stays
    log = process.log.read_bytes()[client.log_start :].decode(errors="replace")
    return Outcome(name, code, last_words(code, log, silent=NO_MESSAGE.get(code, "no message")))


def _end(processes: Iterable[_Process]) -> None:
    """Terminates process groups, and kills those that do not end."""
    processes = list(processes)
    for sign in (signal.SIGTERM, signal.SIGKILL):
        for process in processes:
            if not process.ended.is_set():
                with suppress(ProcessLookupError):
                    os.killpg(process.popen.pid, sign)
        ends_at = time.monotonic() + GRACE_S
        for process in processes:
            process.ended.wait(max(0.0, ends_at - time.monotonic()))
