"""Client processes by fork: a template imports and opens once what all clients of a run share.

The coordinator starts the template (`lwfed.cli.template`) and asks for a fork by a message of JSON with two open files,
the client's standard output and error; the template answers with the fork's process id and later its exit code. The
clients are the template's children and the coordinator's to end: each leads a process group of its own.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO

from lwfed.environment import child_environment
from lwfed.types.errors import exit_name

MODULE = "lwfed.cli.template"
"""What the template runs."""
REQUEST_BYTES = 65_536
GRACE_S = 1.0
"""Seconds that a template whose socket is closed is waited for."""
LOST = 1000
"""In place of an exit code, where the template died and nobody was left to hear it."""
CAN_FORK = sys.platform == "linux"
"""Elsewhere a library may have started threads by being imported."""


class TemplateError(Exception):
    """The template could not be started, or is gone."""


class Forked:
    """A client's process, as far as `subprocess.Popen` is needed of it.

    Attributes:
        pid: Its process id, and its group's; 0 before it is known.
        stdout: What it writes.
        returncode: Its exit code, or a signal's number below zero, once it is known; perhaps `LOST`.
    """

    def __init__(self, stdout: IO[str]) -> None:
        self.pid = 0
        self.stdout = stdout
        self.returncode = LOST
        self._ended = threading.Event()

    def end(self, code: int) -> None:
        """Notes how it ended."""
        self.returncode = code
        self._ended.set()

    def wait(self) -> int:
        """Waits for its end; gives its exit code."""
        self._ended.wait()
        return self.returncode


class Template:
    """A process that is forked for each client. The first fork waits for it to import torch, which takes seconds.

    Raises:
        TemplateError: The system gives no process for it.
    """

    def __init__(self) -> None:
        self._forks: dict[int, Forked] = {}
        self._count = 0
        self._answers: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  (`close` closes it)
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            with theirs:
                self._process = subprocess.Popen(
                    [sys.executable, "-m", MODULE, str(theirs.fileno())], pass_fds=[theirs.fileno()],
                    stdin=subprocess.DEVNULL, stdout=self._log, stderr=self._log, start_new_session=True,
                    env=child_environment(),
                )  # fmt: skip
        except OSError as error:
            self._channel.close()
            self._log.close()
            raise TemplateError(str(error)) from error
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()

    def fork(
        self, step: str, task: Path, *, name: str, errors: IO[str], variables: Mapping[str, str], timeout_s: float
    ) -> Forked:
        """Starts a client's process.

        Args:
            step: Which step it runs.
            task: Its task, as JSON.
            name: What it is called where processes are listed.
            errors: Its standard error.
            variables: Set in its environment, besides those that the template was started with.
            timeout_s: How long to wait for the template.

        Raises:
            TemplateError: The template is gone; says why.
            TimeoutError: It does not answer in time. It is of no more use then.
        """
        self._count += 1
        request = {"client": self._count, "step": step, "task": str(task), "name": name, "variables": dict(variables)}
        reading, writing = os.pipe()
        forked = self._forks[self._count] = Forked(os.fdopen(reading, encoding="utf-8", errors="replace"))
        try:
            try:
                socket.send_fds(self._channel, [json.dumps(request).encode()], [writing, errors.fileno()])
                started = self._answers.get(timeout=timeout_s)
            except OSError:
                started = False
            except queue.Empty:
                raise TimeoutError(f"the template of clients does not answer within {timeout_s:g} s") from None
            if not started:
                raise TemplateError(self._last_word())
        except BaseException:  # an interrupt too: what is forked now, nobody would end
            self.close()
            if forked.pid:
                with suppress(ProcessLookupError):
                    os.killpg(forked.pid, signal.SIGKILL)
            forked.stdout.close()
            raise
        finally:
            os.close(writing)
        return forked

    def close(self) -> None:
        """Ends it, at once: it holds nothing that is not elsewhere. Its forks go on."""
        self._process.kill()
        self._process.wait()
        self._listener.join()
        self._channel.close()
        self._log.close()

    def _listen(self) -> None:
        while True:
            try:
                data = self._channel.recv(REQUEST_BYTES)
            except OSError:
                data = b""
            if not data:
                break
            message = json.loads(data)
            forked = self._forks[message["client"]]
            if "pid" in message:
                forked.pid = message["pid"]
                self._answers.put(True)
            else:
                del self._forks[message["client"]]
                forked.end(message["code"])
        for forked in list(self._forks.values()):
            forked.end(LOST)
        self._answers.put(False)

    def _last_word(self) -> str:
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(GRACE_S)
        self._log.seek(0)
        lines = self._log.read().decode(errors="replace").split("\n")
        code = self._process.returncode
        how = "no answer" if code is None else exit_name(code)
        return next((line.strip() for line in reversed(lines) if line.strip()), how)
