"""Trackers that deliver to MLflow from threads: each process of a tracker takes seconds to import it."""

from __future__ import annotations

import io
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest


class Deliverer(threading.Thread):
    """A tracker's process, as a thread."""

    def __init__(self, command: list[str], **_: Any) -> None:
        from lwfed.tracking.mlflow.process import serve

        self.gone, self.stdin, self.returncode = threading.Event(), io.BytesIO(), 0
        super().__init__(target=serve, args=(Path(command[-1]),), kwargs={"gone": self.gone})
        self.start()

    def wait(self, timeout: float | None = None) -> None:
        """Waits for its end."""
        self.join(timeout)
        if self.is_alive():
            raise subprocess.TimeoutExpired("serve", timeout or 0)

    def terminate(self) -> None:
        """Tells it to end."""
        self.gone.set()


@contextmanager
def delivering_in_threads() -> Iterator[None]:
    """Has trackers that are made in this time deliver from threads."""
    known = {"PIPE": subprocess.PIPE, "TimeoutExpired": subprocess.TimeoutExpired}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lwfed.tracking.mlflow.process.subprocess", SimpleNamespace(Popen=Deliverer, **known))
        yield
