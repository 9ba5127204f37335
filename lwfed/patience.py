"""Patience with a server that fails: try again with growing pauses until a bound of seconds, and say so once."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

GRAIN_S = 1e-3
"""Seconds that are no more than the clock's grain: too few to wait for."""


def _nobody(trouble: str, left_s: float) -> None:
    """Tells nobody."""


@dataclass(slots=True, kw_only=True)
class Patience:
    """How long to try again. Threads that ask the same server for parts of one thing may share one.

    Attributes:
        bound_s: Seconds from the first failure, or the first since the last answer, to giving up; 0: one try is all.
        first_s: Seconds from the first failure to the next try; each pause that follows is twice as long.
        longest_s: Longest pause. Pauses are spread by 30 %, so that many clients do not return at the same moment.
        say_after_s: Seconds of failure after which people hear of it, once per outage.
        say: Takes the trouble and the seconds that are left.
        over: Set: no further try; ends a pause at once.
        clock: Seconds.
        spread: Draws a number from 0 to 1.
    """

    bound_s: float
    first_s: float = 0.1
    longest_s: float = 5.0
    say_after_s: float = 10.0
    say: Callable[[str, float], None] = _nobody
    over: threading.Event = field(default_factory=threading.Event)
    clock: Callable[[], float] = time.monotonic
    spread: Callable[[], float] = random.random
    _since: float | None = None
    _pause_s: float = 0.0
    _said: bool = False

    @property
    def failing_s(self) -> float:
        """Seconds since the first failure without an answer after it; 0 where all is well."""
        return 0.0 if self._since is None else self.clock() - self._since

    def answered(self) -> None:
        """Notes an answer: the next failure is the first again."""
        self._since = None

    def failed(self, trouble: str) -> float | None:
        """Notes a failure.

        Returns:
            Seconds to pause before the next try; None: give up.
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
        """Notes a failure and pauses.

        Returns:
            Whether to try again.
        """
        pause_s = self.failed(trouble)
        return pause_s is not None and not self.over.wait(pause_s)
