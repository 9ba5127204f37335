"""An interrupt is never lost: what Python swallows while an object is finalised is raised a moment later."""

from __future__ import annotations

import os
import signal
import time

import pytest

from lwfed.drive.interrupts import interrupting_on_sigterm


class Finalised:
    """Is interrupted while it is finalised."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __del__(self) -> None:
        os.kill(os.getpid(), self.number)
        time.sleep(0.001)  # the handler runs here


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_is_raised_also_where_it_comes_in_a_finaliser(number: int) -> None:
    before = signal.getsignal(number)
    reached = []
    with pytest.raises(KeyboardInterrupt), interrupting_on_sigterm():
        doomed = Finalised(number)
        del doomed
        reached.append(True)
        time.sleep(2)
    assert reached and signal.getsignal(number) is before


def test_elsewhere_it_is_raised_at_once() -> None:
    with pytest.raises(KeyboardInterrupt), interrupting_on_sigterm():
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(2)
        raise AssertionError("it was lost")
