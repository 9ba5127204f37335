"""The coordinator's side of agents: writes what the run wants, and reads what each agent says."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

from lwfed.launch.agents.state import AgentState, Fact
from lwfed.patience import Patience
from lwfed.run.agents import AgentTask, Beat, Wants, wants_of
from lwfed.spec.run import RunSpec
from lwfed.store import paths
from lwfed.store.protocol import Store
from lwfed.types.errors import CheckpointError, UnreachableError

EVERY_S = 0.2
"""Seconds between two looks at the beats, if there are few."""
SHARE = 0.2
"""The largest share of a coordinator's time that reading beats takes."""
REQUESTS_PER_S = 200.0
"""Requests that all idle agents of a run together send to the store, at most about."""
POLLS_S = (0.25, 10.0)
"""The shortest and the longest time between two reads of an agent."""
PATIENCE_S = 300.0
"""Seconds that the store may not answer while agents are at work."""


class Asking:
    """Calls to agents, one at a time.

    Args:
        spec: The experiment; names the run's agents, and sets heartbeats and retries.
        store: The store that all of them reach.
        run_id: The run.
        agents: The number of agents that read what the run wants.
        warn: Receives a line once per outage of the store.
    """

    def __init__(
        self, spec: RunSpec, *, store: Store, run_id: str, agents: int, warn: Callable[[str], None] = lambda _: None
    ) -> None:
        self._spec, self._store, self._run_id = spec, store, run_id
        self._poll_s = min(max(agents / REQUESTS_PER_S, POLLS_S[0]), POLLS_S[1])
        self._states: dict[str, AgentState] = {}
        self._marks: dict[str, str | None] = {}
        self._next_at = 0.0
        self._patience = Patience(
            bound_s=PATIENCE_S, report=lambda problem, left_s: warn(f"{problem}; retrying for {left_s:.0f} s")
        )

    def begin(self, step: str, work: Mapping[str, Sequence[AgentTask]], *, patience_s: float | None) -> None:
        """Asks agents to do tasks of one step, in place of what the run wanted before.

        Args:
            step: The step.
            work: Agent -> its tasks, in turn.
            patience_s: Seconds without a beat after which an agent's clients fail; None: the caller has a deadline.
        """
        wanted = wants_of(step, work, **self._settings())
        now = time.monotonic()
        self._states = {
            agent: AgentState(
                agent=agent, call=wanted.call, step=step, open=list(clients), since=now, patience_s=patience_s
            )
            for agent, clients in wanted.work.items()
        }
        self._marks = {}
        self._store.write_ref(paths.wants(self._run_id), wanted.to_values())

    @property
    def open(self) -> list[str]:
        """The clients whose tasks have not ended."""
        return [client for state in self._states.values() for client in state.open]

    @property
    def due_in_s(self) -> float:
        """Seconds until the next look; 0 if it is due."""
        return max(0.0, self._next_at - time.monotonic())

    def look(self) -> list[Fact]:
        """Reads the beats of agents with open clients; returns what follows.

        Raises:
            UnreachableError: The store does not answer for `PATIENCE_S`.
        """
        began, facts = time.monotonic(), list[Fact]()
        try:
            for state in self._states.values():
                if state.open:
                    facts += self._hear(state)
        except UnreachableError as error:
            pause_s = self._patience.failed(error.problem)
            if pause_s is None:
                raise
            self._next_at = time.monotonic() + pause_s
            return facts
        self._patience.answered()
        now = time.monotonic()
        self._next_at = now + max(EVERY_S, (now - began) / SHARE)
        return facts

    def why_open(self, client: str) -> str:
        """Returns why a client is not done; empty if it is."""
        for state in self._states.values():
            if client in state.open:
                return state.why_open(client, now=time.monotonic())
        return ""

    def fail(self, agent: str) -> list[str]:
        """Gives up an agent's open clients, and returns them."""
        state = self._states.get(agent)
        given_up = [] if state is None else list(state.open)
        if state is not None:
            state.open.clear()
        return given_up

    def rest(self) -> None:
        """Wants nothing for now: agents at work give up what nobody needs any longer."""
        if self.open:
            self._store.write_ref(paths.wants(self._run_id), Wants(**self._settings()).to_values())
            self._states = {}

    def end(self) -> None:
        """Tells the agents that the run wants nothing more of them."""
        self._store.delete(paths.wants(self._run_id))

    def _hear(self, state: AgentState) -> list[Fact]:
        key = paths.beats(self._run_id, state.agent)
        seen = self._store.read_ref_if_changed(key, self._marks.get(state.agent))
        if seen is None:
            return state.wait(now=time.monotonic())
        self._marks[state.agent] = seen.mark
        try:
            beat = None if seen.value is None else Beat.of(seen.value)
        except CheckpointError:  # of another version of lwfed: as if it had said nothing
            beat = None
        now = time.monotonic()
        return [*state.hear(beat, now=now), *state.wait(now=now)]

    def _settings(self) -> dict[str, object]:
        kubernetes = self._spec.kubernetes
        return {
            "run_id": self._run_id,
            "name": self._spec.name,
            "retries": self._spec.launch.retries,
            "poll_s": self._poll_s,
            "heartbeat_s": kubernetes.heartbeat_s,
            "heartbeat_timeout_s": kubernetes.heartbeat_timeout_s,
        }
