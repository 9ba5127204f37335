"""How to follow a run: how often to poll it, how long an outage may last, and what Ctrl-C does."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from lwfed.patience import Patience
from lwfed.types.errors import LwfedError, UnreachableError

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Pace:
    """Intervals and time limits in seconds.

    Attributes:
        poll_s: Interval between two polls of a run.
        first_poll_s: Interval between its first two polls.
        quiet_s: Time without a running container before looking for the reason, and between two such looks.
        start_timeout_s: Time without a running container before giving up.
        end_timeout_s: Time without progress before giving up on a terminated run, since Argo may get stuck there.
        patience_s: Longest outage of the server.
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
    """Following was interrupted; the run continues."""

    exit_code = 130
    name = "interrupted"


def with_retries(action: Callable[[], T], *, pace: Pace, say: Callable[[str], Any]) -> T:
    """Calls a server, and repeats the call while it does not answer.

    Args:
        action: The call.
        pace: How long to wait.
        say: Receives a line for people after each failed call.

    Returns:
        The call's result.

    Raises:
        UnreachableError: The server does not answer for `pace.patience_s`.
    """
    patience = Patience(bound_s=pace.patience_s, first_s=pace.first_poll_s, longest_s=pace.poll_s)
    while True:
        try:
            return action()
        except UnreachableError as error:
            if (pause_s := patience.failed(error.problem)) is None:
                raise
            say(f"{error.problem}; retrying")
            time.sleep(pause_s)


@contextmanager
def left_running(run: str) -> Iterator[None]:
    """Turns Ctrl-C into an error that says how to follow the run again, or to end it."""
    try:
        yield
    except KeyboardInterrupt:
        raise LeftRunningError(
            f"no longer following; the run {run} continues",
            remedy=f"follow it again with lwfed logs {run} --follow, or end it with lwfed cancel {run}",
        ) from None
