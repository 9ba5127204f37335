"""What a process that drives a run holds: a launcher, and a heartbeat where pods watch for one."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from types import FrameType

from lwfed import environment
from lwfed.launch.launchers import make_launcher
from lwfed.run.heartbeat import beating
from lwfed.run.launcher import Launcher
from lwfed.spec.run import RunSpec
from lwfed.store.local import LocalStore
from lwfed.store.protocol import Store

RETRY_S = 0.01
"""Seconds after which an interrupt that would be lost is raised again."""


@contextmanager
def driving(spec: RunSpec, *, run_id: str, store: Store) -> Iterator[Launcher]:
    """Opens what it takes to drive a run, and lets go of it afterwards.

    Args:
        spec: The experiment.
        run_id: The run.
        store: Where it is.

    Raises:
        UnreachableError: The cluster does not answer.
    """
    with ExitStack() as stack:
        launcher = stack.enter_context(closing(make_launcher(spec, store=store, run_id=run_id)))
        if launcher.remote:
            every_s, by = spec.kubernetes.heartbeat_s, environment.own_name()
            stack.enter_context(beating(store, run_id, every_s=every_s, by=by))
        yield launcher


def client_cache(store: Store) -> Path:
    """Gives the folder in which clients of this machine keep frozen blocks; beside the blocks, where they are here."""
    return store.root / "cache" if isinstance(store, LocalStore) else environment.cache_folder() / "clients"


@contextmanager
def ending_on_terminate() -> Iterator[None]:
    """Turns SIGTERM into an interrupt, so that clients are ended and trackers told; and sees that none is lost.

    Python swallows what is raised while an object is finalised: an interrupt that comes then is raised a moment later.
    """

    def interrupt(number: int, frame: FrameType | None) -> None:
        while frame is not None:
            if frame.f_code.co_name == "__del__":
                signal.setitimer(signal.ITIMER_REAL, RETRY_S)
                return
            frame = frame.f_back
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGALRM)}
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in before.items():
            signal.signal(number, handler)
