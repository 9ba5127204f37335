"""Makes SIGTERM and Ctrl-C end a run the same way: by a KeyboardInterrupt that no finaliser swallows."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

RETRY_S = 0.01
"""Seconds until an interrupt that would be lost is raised again."""


@contextmanager
def interrupting_on_sigterm() -> Iterator[None]:
    """Turns SIGTERM into an interrupt, so that clients end and the run's end is recorded, and loses no interrupt.

    Python swallows exceptions in finalisers, so an interrupt that arrives there is raised a moment later.
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
