"""Starts `lwfed` commands as forks of one process that has done the imports, so that a test can start and kill many.

    python tests/nest.py

Each line of its input is a request. A fork is a process of its own: it has its own memory, signals and exit status, and
runs the command as a user would type it.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

LOADED = (
    "timm", "transformers.models.distilbert.modeling_distilbert", "lwfed.cli.main", "lwfed.drive.training",
    "lwfed.cli.agent", "lwfed.launch.in_process", "lwfed.launch.agents", "lwfed.agent.serve", "lwfed.agent.judging",
    "lwfed.steps.experiment", "lwfed.steps.finish", "lwfed.round.initial", "lwfed.steps.prepare",
    "lwfed.steps.inspect_client", "lwfed.store.s3.store",
)  # fmt: skip


def main() -> None:
    """Serves requests: `start` answers with a process id, `poll` with an exit status or null."""
    for name in LOADED:
        importlib.import_module(name)
    print(json.dumps("ready"), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        answer: Any = None
        if "start" in request:
            sys.stdout.flush()
            answer = os.fork()
            if answer == 0:
                _run(request)
        else:
            try:
                pid, status = os.waitpid(request["poll"], os.WNOHANG)
                answer = os.waitstatus_to_exitcode(status) if pid else None
            except ChildProcessError:
                answer = None
        print(json.dumps(answer), flush=True)


def _run(request: Mapping[str, Any]) -> None:
    os.setsid()
    os.chdir(request["cwd"])
    os.environ.update(request["env"])
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(request[name], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for name, value in request["constants"].items():
        module, _, constant = name.rpartition(".")
        setattr(importlib.import_module(module), constant, value)
    if request["slow_s"]:
        _slow_down(request["slow_s"])
    sys.argv = ["lwfed", *request["start"]]
    from lwfed.cli.main import main as command

    code = 0
    try:
        command()
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 0
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _slow_down(seconds: float) -> None:
    """Has each training step take so much longer, as on a slow machine, without a CPU's time."""
    from lwfed.launch import dispatch

    made = dispatch.step_reporter

    def slowly(client: str, emit: Any) -> Any:
        report = made(client, emit)

        def wait(*step: Any) -> None:
            time.sleep(seconds)
            report(*step)

        return wait

    dispatch.step_reporter = slowly


@dataclass
class Command:
    """A command of a nest."""

    nest: Nest
    pid: int
    out_path: Path
    err_path: Path
    arguments: tuple[str, ...]
    code: int | None = None

    @property
    def out(self) -> str:
        """What it has written to standard output so far."""
        return self.out_path.read_text(encoding="utf-8")

    @property
    def err(self) -> str:
        """What it has written to standard error so far."""
        return self.err_path.read_text(encoding="utf-8")

    @property
    def json(self) -> dict[str, Any]:
        """The JSON object in the last line of standard output."""
        value = json.loads(self.out.strip().splitlines()[-1])
        assert isinstance(value, dict)
        return value

    def poll(self) -> int | None:
        """Returns its exit status; None while it runs."""
        if self.code is None:
            self.code = self.nest.ask({"poll": self.pid})
        return self.code

    def signal(self, number: int) -> None:
        """Sends it a signal."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Kills it and waits for its end."""
        self.signal(signal.SIGKILL)
        self.wait(timeout=60)

    def wait(self, *, timeout: float = 400) -> int:
        """Waits for its end; returns its exit status."""
        ends_at = time.monotonic() + timeout
        while self.poll() is None:
            assert time.monotonic() < ends_at, f"{self.arguments} takes more than {timeout} s\n{self.out}\n{self.err}"
            time.sleep(0.02)
        assert self.code is not None
        return self.code

    def succeed(self, *, timeout: float = 400) -> Command:
        """Waits for its end, which must be a success."""
        assert self.wait(timeout=timeout) == 0, f"{self.code}\n{self.out}\n{self.err}"
        return self


@dataclass
class Nest:
    """The process that commands are forked from."""

    process: subprocess.Popen[str]
    commands: list[Command] = field(default_factory=list)
    _asking: threading.Lock = field(default_factory=threading.Lock)

    def ask(self, request: Mapping[str, Any]) -> Any:
        """Sends a request; returns the answer."""
        assert self.process.stdin is not None and self.process.stdout is not None
        with self._asking:
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
            return json.loads(self.process.stdout.readline())

    def start(
        self,
        *arguments: str | Path,
        cwd: Path,
        constants: Mapping[str, float] | None = None,
        slow_s: float = 0.0,
        **extra: str,
    ) -> Command:
        """Starts `lwfed` in a folder, with constants of its modules and variables changed, on a machine as slow."""
        words = tuple(map(str, arguments))
        number = len(self.commands)
        out, err = cwd / f"{number}.out", cwd / f"{number}.err"
        request = {
            "start": words, "cwd": str(cwd), "out": str(out), "err": str(err), "env": extra,
            "constants": dict(constants or {}), "slow_s": slow_s,
        }  # fmt: skip
        out.touch()
        err.touch()
        command = Command(self, self.ask(request), out, err, words)
        self.commands.append(command)
        return command

    def clear(self) -> None:
        """Kills all commands that still run."""
        for command in self.commands:
            command.kill()


@contextmanager
def nest(environment: Mapping[str, str]) -> Iterator[Nest]:
    """Starts a nest; kills its commands at the end."""
    process = subprocess.Popen(
        [sys.executable, "-P", __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env={**environment, "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)},
    )  # fmt: skip
    assert process.stdout is not None
    assert json.loads(process.stdout.readline()) == "ready"
    made = Nest(process)
    try:
        yield made
    finally:
        made.clear()
        assert process.stdin is not None
        process.stdin.close()
        process.kill()
        process.wait(timeout=60)
        process.stdout.close()


if __name__ == "__main__":
    main()
