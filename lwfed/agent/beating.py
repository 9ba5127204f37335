"""An agent's own object: what it says of itself, written by one thread, so that others see it is alive and where.

A second agent of the same client is seen by its beats: whoever finds another process's beat moving gives way.
"""

from __future__ import annotations

import math
import platform
import threading
import time
import uuid
from collections.abc import Callable
from typing import Any

from lwfed import __version__, environment
from lwfed.run.agents import AgentOutcome, Beat
from lwfed.store import paths
from lwfed.store.protocol import Store
from lwfed.types.errors import AgentError, CheckpointError

BEAT_S = 5.0
"""Seconds between beats of an agent that has nothing new to say."""
STEP_S = 1.0
"""Seconds between beats while it trains."""
RESTS, STEPS = 4.0, 0.5
"""The same in polls: the more agents a run has, the more rarely each may poll, and beat."""


class Beats:
    """The beats of an agent for a run; its methods may be called from any thread.

    Args:
        store: The store.
        run_id: The run.
        agent: The agent's name.
        alone: Whether nothing else can be running under that name, such as the only pod of an index.
        sleep: Sleeps for a number of seconds.

    Raises:
        AgentError: Another agent of the same name beats.
        UnreachableError: The store does not answer.
    """

    def __init__(
        self, store: Store, run_id: str, agent: str, *, alone: bool, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        self._store, self._key = store, paths.beats(run_id, agent)
        self._saying, self._writing = threading.RLock(), threading.Lock()
        self._written_at = self._alone_at = -math.inf
        self._poll_s = 0.0
        before = self._last()
        if before is not None and not before.ended and not alone:
            sleep(2 * max(BEAT_S, before.every_s))
            after = self._last()
            if after is not None and (after.process, after.beat) != (before.process, before.beat):
                raise _second(after)
            before = after
        kept = {} if before is None else before.model_dump(include={"call", "tries", "outcomes"})
        process, host = uuid.uuid4().hex, environment.pod_name() or platform.node()
        self._beat = Beat(agent=agent, process=process, host=host, version=__version__, **kept)
        self._alone_at = time.monotonic()
        self.write()

    @property
    def last(self) -> Beat:
        """What it says, as far as it has been written or not."""
        return self._beat

    def say(self, *, now: bool = False, **values: Any) -> None:
        """Says something new: with the next beat, or at once if the store answers.

        Args:
            now: Write it at once.
            values: Fields of `Beat`.

        Raises:
            AgentError: Another agent of the same name has begun.
        """
        with self._saying:
            self._beat = self._beat.changed(**values)
        if now:
            try:
                self.write()
            except OSError:  # the store is unreachable or full: the next beat says it
                self._written_at = -math.inf

    def begin_call(self, call: str) -> None:
        """Says that what follows is about another call; what is at work goes on for it."""
        with self._saying:
            beat = self._beat
            tries = {client: count for client, count in beat.tries.items() if client == beat.client}
            self._beat = beat.changed(call=call, outcomes={}, tries=tries)

    def end_task(self, client: str, outcome: AgentOutcome) -> None:
        """Says at once how a client's task ended."""
        with self._saying:
            outcomes = {**self._beat.outcomes, client: outcome}
            self._beat = self._beat.changed(outcomes=outcomes, client="", step=0, steps=0)
        self.say(now=True)

    def pace(self, poll_s: float) -> None:
        """Notes how often the agent polls; with thousands of agents, whose polls are far apart, beats are rarer too."""
        self._poll_s = poll_s

    @property
    def every_s(self) -> float:
        """Seconds to the beat after the next one, which says so."""
        return max(STEP_S, STEPS * self._poll_s) if self._beat.client else max(BEAT_S, RESTS * self._poll_s)

    @property
    def due_in_s(self) -> float:
        """Seconds until the next beat."""
        promised = self._beat.every_s or self.every_s
        return max(0.0, self._written_at + min(promised, self.every_s) - time.monotonic())

    def write(self) -> None:
        """Writes a beat. Looks for another agent's as often as an idle agent beats, and after a longer pause.

        Raises:
            AgentError: Another agent of the same name has begun.
            UnreachableError: The store does not answer.
            DiskFullError: The store is full.
        """
        with self._writing:
            began = time.monotonic()
            if began - self._alone_at >= BEAT_S:
                other = self._last()
                if other is not None and other.process != self._beat.process:
                    raise _second(other)
                self._alone_at = began
            with self._saying:
                self._beat = self._beat.changed(beat=self._beat.beat + 1, every_s=self.every_s)
                values = self._beat.to_values()
            self._store.write_ref(self._key, values)
            self._written_at = time.monotonic()

    def _last(self) -> Beat | None:
        try:
            value = self._store.read_ref(self._key)
            return None if value is None else Beat.of(value)
        except CheckpointError:  # of another version of lwfed
            return None


def _second(other: Beat) -> AgentError:
    return AgentError(
        f"another agent of {other.agent} is at work on {other.host or 'another machine'}",
        remedy="end one of them; a client has one agent",
    )
