"""Watches the coordinator of the run that an agent works for, and tells the agent's owner when it is gone."""

from __future__ import annotations

import time
from collections.abc import Callable

from lwfed.run.agents import Wants
from lwfed.store import paths
from lwfed.store.protocol import Store


class Coordinator:
    """What is known of a run's coordinator, by the agent's own clock.

    Args:
        store: The store with the heartbeats.
        say: Receives a line when the coordinator is gone, and another when it is back.
    """

    def __init__(self, store: Store, *, say: Callable[[str], None]) -> None:
        self._store, self._say = store, say
        self._run_id, self._gone = "", False
        self._mark: str | None = None
        self._heard_at = self._looked_at = time.monotonic()

    def watch(self, wants: Wants | None) -> None:
        """Looks whether the coordinator still beats, as often as it does. Raises UnreachableError."""
        now = time.monotonic()
        if wants is None:
            self._run_id = ""
            return
        if wants.run_id != self._run_id:
            self._run_id, self._mark, self._gone = wants.run_id, None, False
            self._heard_at = self._looked_at = now
        blind_s = now - self._looked_at - wants.heartbeat_s
        if blind_s < 0:
            return
        self._heard_at += max(0.0, blind_s - wants.poll_s)  # the store did not answer, so no beat could be seen
        self._looked_at = now
        seen = self._store.read_ref_if_changed(paths.heartbeat(wants.run_id), self._mark)
        if seen is not None and seen.value is not None:
            if self._gone:
                self._say(f"the coordinator of {wants.run_id} is back")
            self._mark, self._heard_at, self._gone = seen.mark, now, False
        elif not self._gone and now - self._heard_at > wants.heartbeat_timeout_s:
            self._gone = True
            self._say(f"no heartbeat from the coordinator of {wants.run_id} for {now - self._heard_at:.0f} s; waiting")
