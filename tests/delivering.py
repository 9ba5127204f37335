"""Followers that deliver to MLflow from threads: each of their processes takes seconds to import it."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest


class Deliverer(threading.Thread):
    """A follower's process, as a thread."""

    def __init__(self, command: list[str], **_: Any) -> None:
        from lwfed.tracking.mlflow.delivery import serve

        self.gone, self.returncode = threading.Event(), 0
        super().__init__(target=serve, args=(Path(command[-2]),), kwargs={"gone": self.gone.is_set})
        self.start()

    def wait(self, timeout: float | None = None) -> None:
        """Waits for its end."""
        self.join(timeout)
        if self.is_alive():
            raise subprocess.TimeoutExpired("serve", timeout or 0)

    def kill(self) -> None:
        """Tells it to end."""
        self.gone.set()


@contextmanager
def delivering_in_threads() -> Iterator[None]:
    """Has followers that are made in this time deliver from threads."""
    known = {"DEVNULL": subprocess.DEVNULL, "TimeoutExpired": subprocess.TimeoutExpired}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lwfed.tracking.mlflow.process.subprocess", SimpleNamespace(Popen=Deliverer, **known))
        yield
