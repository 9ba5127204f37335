"""Retries with growing pauses while a server fails, up to a time limit, with one report per outage."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

GRAIN_S = 1e-3
"""Shortest wait in seconds: anything less is within the clock's resolution."""


def _ignore(problem: str, left_s: float) -> None:
    """Reports nothing."""


@dataclass(slots=True, kw_only=True)
class Patience:
    """How long to retry. Threads that request parts of one object from a server may share one.

    Attributes:
        bound_s: Seconds from the first failure since the last answer to giving up; 0: a single try.
        first_s: The first pause in seconds; each further pause is twice as long.
        longest_s: The longest pause. Pauses vary by 30 %, so that many clients do not retry at the same moment.
        report_after_s: Seconds of failure after which `report` is called, once per outage.
        report: Receives the problem and the remaining seconds.
        over: When set, ends a pause at once and allows no further try.
        clock: Returns seconds.
        spread: Draws a number from 0 to 1.
    """

    bound_s: float
    first_s: float = 0.1
    longest_s: float = 5.0
    report_after_s: float = 10.0
    report: Callable[[str, float], None] = _ignore
    over: threading.Event = field(default_factory=threading.Event)
    clock: Callable[[], float] = time.monotonic
    spread: Callable[[], float] = random.random
    _since: float | None = None
    _pause_s: float = 0.0
    _reported: bool = False

    @property
    def failing_s(self) -> float:
        """Seconds since the first failure after the last answer; 0 if there is none."""
        return 0.0 if self._since is None else self.clock() - self._since

    def answered(self) -> None:
        """Records an answer: the next failure starts a new outage."""
        self._since = None

    def failed(self, problem: str) -> float | None:
        """Records a failure.

        Returns:
            Seconds to pause before the next try; None to give up.
        """
        if self._since is None:
            self._since, self._pause_s, self._reported = self.clock(), self.first_s, False
        left_s = self.bound_s - self.failing_s
        if left_s < GRAIN_S or self.over.is_set():
            return None
        if not self._reported and self.failing_s > self.report_after_s:
            self._reported = True
            self.report(problem, left_s)
        pause_s, self._pause_s = self._pause_s, min(2 * self._pause_s, self.longest_s)
        return min(pause_s * (0.7 + 0.6 * self.spread()), left_s)

    def wait(self, problem: str) -> bool:
        """Records a failure and pauses.

        Returns:
            Whether to try again.
        """
        pause_s = self.failed(problem)
        return pause_s is not None and not self.over.wait(pause_s)
