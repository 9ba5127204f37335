"""A stage's start by part: from the start of the coordinator's process to the first training step of a client."""

from __future__ import annotations

import time
from collections.abc import Callable

import psutil

from lwfed.run.events import ClientDone, ClientStarted, ClientStep, Emit, Event, RoundStarted, StageStarted


class Starting:
    """Listens to a stage's events until its first training step.

    Args:
        emit: Receives every event, unchanged.
        process_s: Age of this process in seconds if the stage is its first work; None: it has done other work before.
        clock: Returns seconds.
    """

    def __init__(self, emit: Emit, *, process_s: float | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._emit, self._clock = emit, clock
        self._parts: dict[str, float] = {} if process_s is None else {"process": process_s}
        self._since: float | None = None
        self._open = ["prepare", "clients", "first_step"]

    def emit(self, event: Event) -> None:
        """Passes an event on."""
        self._emit(event)
        if not self._open:
            return
        match event:
            case StageStarted():
                self._since = self._clock()
            case RoundStarted():
                self._end("prepare")
            case ClientStarted(step="train-client"):
                self._end("clients")
            case ClientStep() | ClientDone(failed=None):
                self._end("first_step")

    @property
    def seconds(self) -> dict[str, float]:
        """Part -> seconds; empty if no client has trained.

        `process`: imports, and all that came before the stage; `prepare`: the stage's first model; `clients`: until the
        first client's process is there; `first_step`: its imports, the model, outputs of frozen blocks, and one step,
        or all of its steps if it was heard only after them.
        """
        return {} if self._open else dict(self._parts)

    def _end(self, part: str) -> None:
        """Ends a part, if it is the one that is measured."""
        if self._open and self._open[0] == part and self._since is not None:
            now = self._clock()
            self._parts[part], self._since = now - self._since, now
            self._open.pop(0)


def age_of_process() -> float:
    """Returns how many seconds ago this process started."""
    return max(0.0, time.time() - psutil.Process().create_time())
