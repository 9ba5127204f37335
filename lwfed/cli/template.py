"""The template of clients' processes: it has imported and opened what they share, and is forked for each of them.

It starts no thread and leaves CUDA alone: a fork keeps neither. What it holds is read and never written, so that all
clients share its memory. It ends when the coordinator does; clients watch that by themselves.
"""

from __future__ import annotations

import atexit
import gc
import json
import os
import select
import signal
import socket
import sys
import warnings
from contextlib import suppress
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from lwfed import environment
from lwfed.cli.main import main as run_command
from lwfed.cli.step import read_task, run_client, task_of
from lwfed.data.tokens import open_tokenizer
from lwfed.launch.template import REQUEST_BYTES
from lwfed.round.workbench import Workbench
from lwfed.run.tasks import ClientTask
from lwfed.spec.data import CLIENT_MARK

IMPORTED = ("lwfed.launch.in_process",)
"""What every client imports, however late."""
TITLE = Path("/proc/self/comm")
TITLE_LENGTH = 15


class Client(NamedTuple):
    """What a fork is to do: a step, its task, and the bench it inherits."""

    step: str
    task: Path
    bench: Workbench | None


class Kept:
    """What forks inherit: the bench, with what the stage that was asked for last needs."""

    def __init__(self) -> None:
        self.bench: Workbench | None = None
        self._known: tuple[str, Any] | None = None

    def prepare(self, step: str, path: Path) -> None:
        """Opens what a client's task needs, unless it is at hand; what goes wrong each client meets and tells."""
        with suppress(Exception), environment.leaving_cuda_alone():
            task = task_of(step, read_task(path))
            if not isinstance(task, ClientTask):
                return
            known = (task.stage_key, task.place)
            if known == self._known:
                return
            if self.bench is None or self.bench.store.uri != task.store:
                self.bench = Workbench.at(task.store)
            self._known = known
            stage = self.bench.stage(task.stage_key)
            self.bench.skeleton(stage.key)
            inputs = self.bench.inputs(stage)
            if "text" in inputs.modalities:
                open_tokenizer(inputs.tokenizer)
            if CLIENT_MARK not in (task.place.root or ""):  # else each opens its own
                self.bench.share(stage, task.place, task.client)
        freeze()


def freeze() -> None:
    """Takes what is there from the garbage collector, which would write to it, and so copy it, in each fork."""
    gc.collect()
    gc.freeze()


def serve(channel: socket.socket) -> Client | None:
    """Forks for each request until the coordinator is gone.

    Args:
        channel: Brings requests (see `lwfed.launch.template`), and takes the ids and exit codes of forks.

    Returns:
        In a fork what it is to do; in the template None, at its end.
    """
    kept, clients = Kept(), dict[int, int]()
    woken, waker = os.pipe()
    os.set_blocking(waker, False)
    signal.set_wakeup_fd(waker)
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    descriptor = channel.fileno()
    while True:
        ready, _, _ = select.select([descriptor, woken], [], [])
        if woken in ready:
            os.read(woken, 4096)
            for number, code in _ended(clients):
                _say(channel, {"client": number, "code": code})
        if descriptor not in ready:
            continue
        data, streams = _hear(channel)
        if not data:
            return None
        request = json.loads(data)
        path = Path(request["task"])
        kept.prepare(request["step"], path)
        pid = _fork()
        if pid == 0:
            signal.set_wakeup_fd(-1)
            for number in (channel.detach(), woken, waker):
                os.close(number)
            _become(request, streams)
            return Client(request["step"], path, kept.bench)
        for number in streams:
            os.close(number)
        with suppress(OSError):  # it has done so itself, or has ended
            os.setpgid(pid, pid)
        clients[pid] = request["client"]
        _say(channel, {"client": request["client"], "pid": pid})


def _fork() -> int:
    with warnings.catch_warnings():
        # Python warns of a fork beside threads; the only ones are OpenBLAS's, which it ends and starts by itself.
        warnings.filterwarnings("ignore", message=".*multi-threaded.*fork", category=DeprecationWarning)
        return os.fork()


def _ended(clients: dict[int, int]) -> list[tuple[int, int]]:
    """Takes the forks that have ended: their numbers and exit codes."""
    ended = []
    while clients:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == 0:
            break
        ended.append((clients.pop(pid), os.waitstatus_to_exitcode(status)))
    return ended


def _hear(channel: socket.socket) -> tuple[bytes, list[int]]:
    try:
        data, streams, _, _ = socket.recv_fds(channel, REQUEST_BYTES, 2)
    except ConnectionResetError:  # it is gone, and has not read all that was said
        return b"", []
    return data, streams


def _say(channel: socket.socket, message: dict[str, int]) -> None:
    with suppress(OSError):  # the coordinator is gone: the next request says so
        channel.send(json.dumps(message).encode())


def _become(request: dict[str, Any], streams: list[int]) -> None:
    """Makes a fork what a process of its own would be: its group, signals, streams, variables and name."""
    os.setpgid(0, 0)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number, descriptor in enumerate(streams, start=1):
        os.dup2(descriptor, number)
        os.close(descriptor)
    environment.become(request["variables"])
    with suppress(OSError):
        TITLE.write_text(request["name"][:TITLE_LENGTH], encoding="utf-8")


def _leave(codes: list[int]) -> None:
    """Ends a fork, after all that is to be done at its end: to take the interpreter apart would copy what it shares."""
    if codes:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError):
                stream.flush()
        os._exit(codes[0])


def main() -> None:
    """Runs as `python -m lwfed.cli.template DESCRIPTOR`, the number of an open socket."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the coordinator, which ends clients
    codes: list[int] = []
    atexit.register(_leave, codes)  # the first to be registered is the last to run
    environment.quiet()
    with environment.leaving_cuda_alone():
        for module in IMPORTED:
            import_module(module)
    freeze()
    client = serve(socket.socket(fileno=int(sys.argv[1])))
    if client is None:
        return
    try:
        run_command(partial(run_client, client.step, client.task, bench=client.bench))
    except SystemExit as ended:
        codes.append(int(ended.code or 0))
        raise
    codes.append(0)


if __name__ == "__main__":
    main()
