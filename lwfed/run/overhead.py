"""Orchestration overhead: the time between a round's last update and the start of the next round's clients."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from lwfed.run.events import ClientDone, ClientStarted, Emit, Event, OverheadMeasured


class Overhead:
    """Listens to a stage's events and measures the gaps between its rounds.

    Args:
        emit: Receives every event, unchanged, and `OverheadMeasured` when a round's clients start.
        clock: Returns seconds.
    """

    def __init__(self, emit: Emit, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._emit, self._clock = emit, clock
        self._last_update: float | None = None
        self._waiting_since: float | None = None
        self._server_s = 0.0
        self._measured: dict[str, float] = {}

    def emit(self, event: Event) -> None:
        """Passes an event on."""
        self._emit(event)
        match event:
            case ClientDone():
                self._last_update = self._clock()
            case ClientStarted(step="train-client") if self._waiting_since is not None:
                between = self._clock() - self._waiting_since
                self._waiting_since = None
                self._measured = {"between_rounds": between, "overhead": max(0.0, between - self._server_s)}
                self._emit(OverheadMeasured(seconds=self._measured["overhead"], between_rounds=between))

    def close_round(self, walls: Mapping[str, float]) -> dict[str, float]:
        """Ends a round.

        Args:
            walls: Seconds of the round's parts; `aggregate`, `evaluate` and `evaluate_clients` are work, not overhead.

        Returns:
            `between_rounds` and `overhead`: seconds of the gap before this round's clients, and the part of it that was
            not work; empty for a stage's first round, and for a round that did not wait for clients.
        """
        measured, self._measured = self._measured, {}
        self._waiting_since, self._last_update = self._last_update, None
        self._server_s = sum(walls.get(name, 0.0) for name in ("aggregate", "evaluate", "evaluate_clients"))
        return measured
