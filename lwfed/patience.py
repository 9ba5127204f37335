"""Retries for a failing server: growing pauses up to a total time, with one message per outage."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

GRAIN_S = 1e-3
"""Resolution of the clock, in seconds; shorter times are not worth a wait."""


def _ignore(trouble: str, left_s: float) -> None:
    """Ignores the message."""


@dataclass(slots=True, kw_only=True)
class Patience:
    """The state of retries. Threads that request parts of one object from the same server can share one.

    Attributes:
        bound_s: Seconds from the first failure since the last answer until giving up; 0 allows a single try.
        first_s: Seconds from the first failure to the next try; each later pause is twice as long.
        longest_s: Longest pause. Pauses vary by 30 %, so that many clients do not return at the same moment.
        say_after_s: Seconds of failure after which `say` is called, once per outage.
        say: Called with the problem and the seconds left.
        over: If set, there is no further try, and a pause ends at once.
        clock: Returns seconds.
        spread: Returns a random number from 0 to 1.
    """

    bound_s: float
    first_s: float = 0.1
    longest_s: float = 5.0
    say_after_s: float = 10.0
    say: Callable[[str, float], None] = _ignore
    over: threading.Event = field(default_factory=threading.Event)
    clock: Callable[[], float] = time.monotonic
    spread: Callable[[], float] = random.random
    _since: float | None = None
    _pause_s: float = 0.0
    _said: bool = False

    @property
    def failing_s(self) -> float:
        """Seconds since the first failure after the last answer; 0 if there was none."""
        return 0.0 if self._since is None else self.clock() - self._since

    def answered(self) -> None:
        """Records an answer, so that the next failure is a first one again."""
        self._since = None

    def failed(self, trouble: str) -> float | None:
        """Records a failure.

        Returns:
            Seconds to pause before the next try; None to give up.
        """
        if self._since is None:
            self._since, self._pause_s, self._said = self.clock(), self.first_s, False
        left_s = self.bound_s - self.failing_s
        if left_s < GRAIN_S or self.over.is_set():
            return None
        if not self._said and self.failing_s > self.say_after_s:
            self._said = True
            self.say(trouble, left_s)
        pause_s, self._pause_s = self._pause_s, min(2 * self._pause_s, self.longest_s)
        return min(pause_s * (0.7 + 0.6 * self.spread()), left_s)

    def wait(self, trouble: str) -> bool:
        """Records a failure and pauses.

        Returns:
            Whether to try again.
        """
        pause_s = self.failed(trouble)
        return pause_s is not None and not self.over.wait(pause_s)
