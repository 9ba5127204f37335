"""SIGTERM and Ctrl-C end a run the same way: as an interrupt that no finaliser swallows."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

RETRY_S = 0.01
"""Seconds after which an interrupt that would be lost is raised again."""


@contextmanager
def ending_on_terminate() -> Iterator[None]:
    """Turns SIGTERM into an interrupt, so that clients end and the run's records say so; and sees that none is lost.

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
