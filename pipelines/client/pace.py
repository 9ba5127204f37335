"""How a run is watched: how often it is looked at, how long an outage may last, and what Ctrl-C means."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from lwfed.types.errors import LwfedError, UnreachableError

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Pace:
    """How long to wait for what, in seconds.

    Attributes:
        poll_s: Between two looks at a run.
        first_poll_s: Between its first two looks.
        quiet_s: Without a container at work, after which we look for what holds it up, and between two such looks.
        start_timeout_s: Without a container at work, after which we give up.
        end_timeout_s: For a terminated run that neither ends nor moves: Argo can lose its way there.
        patience_s: For a server that is away meanwhile.
    """

    poll_s: float = 5.0
    first_poll_s: float = 1.0
    quiet_s: float = 60.0
    start_timeout_s: float = 600.0
    end_timeout_s: float = 900.0
    patience_s: float = 300.0


USUAL = Pace()


def usual_pace(**changes: float) -> Pace:
    """Returns the pace of the commands, with some changes."""
    return replace(USUAL, **changes)


class LeftRunningError(LwfedError):
    """Following was interrupted; the run goes on."""

    exit_code = 130
    name = "interrupted"


def patiently(action: Callable[[], T], *, pace: Pace, say: Callable[[str], Any]) -> T:
    """Does something with a server, again and again while it does not answer.

    Args:
        action: What to do.
        pace: How long to wait.
        say: Takes a line for people, for each time in vain.

    Returns:
        What the action returns.

    Raises:
        UnreachableError: The server stays away.
    """
    began, wait_s = time.monotonic(), pace.first_poll_s
    while True:
        try:
            return action()
        except UnreachableError as error:
            if time.monotonic() - began > pace.patience_s:
                raise
            say(f"{error.problem}; trying again")
            time.sleep(wait_s)
            wait_s = min(pace.poll_s, 1.5 * wait_s)


@contextmanager
def left_running(run: str) -> Iterator[None]:
    """Turns Ctrl-C into the error that says how to go on with a run, or to end it."""
    try:
        yield
    except KeyboardInterrupt:
        raise LeftRunningError(
            f"no longer following; the run {run} goes on",
            remedy=f"lwfed logs {run} --follow, or to end it: lwfed cancel {run}",
        ) from None
