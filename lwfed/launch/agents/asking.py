"""The coordinator's side of agents: writes what the run wants, and reads what each agent says."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

from lwfed.launch.agents.places import moved
from lwfed.launch.agents.state import AgentState, Fact
from lwfed.patience import Patience
from lwfed.run import runs
from lwfed.run.agents import Beat, Wants, wants_of
from lwfed.run.launcher import Outcome
from lwfed.run.tasks import PodTask
from lwfed.spec.run import RunSpec
from lwfed.store import paths
from lwfed.store.ahead import parallel_map
from lwfed.store.protocol import Seen, Store
from lwfed.store.refs import TOGETHER
from lwfed.types.errors import CheckpointError, UnreachableError

EVERY_S = 0.2
"""Seconds between two looks at the beats, if there are few."""
SHARE = 0.2
"""The largest share of a coordinator's time that reading beats takes."""
REQUESTS_PER_S = 200.0
"""Requests that all idle agents of a run together send to the store, at most about."""
POLLS_S = (0.25, 10.0)
"""The shortest and the longest time between two reads of an agent."""
GONE_S = 600.0
"""Seconds without a beat after which an agent is given up in a round without a deadline."""
PATIENCE_S = 300.0
"""Seconds that the store may not answer while agents are at work."""


class Asking:
    """Calls to agents, one at a time.

    Args:
        spec: The experiment; names the run's agents, and sets heartbeats and retries.
        store: The store that all of them reach.
        run_id: The run.
        warn: Receives a line once per outage of the store.
    """

    def __init__(
        self, spec: RunSpec, *, store: Store, run_id: str, warn: Callable[[str], None] = lambda _: None
    ) -> None:
        self._spec, self._store, self._run_id = spec, store, run_id
        self._pods = spec.launch.kind == "kubernetes"
        self._states: dict[str, AgentState] = {}
        self._marks: dict[str, str | None] = {}
        self._wanted: Wants | None = None
        self._heard: dict[str, Beat] = {}
        self._served: dict[str, str] = {}
        self._noted: dict[str, tuple[str, str]] = {}
        self._resting: bool | None = None  # unknown what an earlier coordinator wanted
        self._next_at = 0.0
        self._patience = Patience(
            bound_s=PATIENCE_S, report=lambda problem, left_s: warn(f"{problem}; retrying for {left_s:.0f} s")
        )

    def begin(self, step: str, work: Mapping[str, Sequence[PodTask]], *, patience_s: float | None) -> None:
        """Asks agents to do tasks of one step, in place of what the run wanted before.

        Args:
            step: The step.
            work: Agent -> its tasks, in turn.
            patience_s: Seconds without a beat after which an agent's clients fail; None: the caller has a deadline.
        """
        wanted = wants_of(step, work, **self._settings())
        now = time.monotonic()
        self._noted |= {agent: state.noted for agent, state in self._states.items() if state.noted is not None}
        self._states = {
            agent: AgentState(
                agent=agent,
                call=wanted.call,
                step=step,
                open=list(clients),
                since=now,
                patience_s=patience_s,
                noted=self._noted.get(agent),
            )
            for agent, clients in wanted.work.items()
        }
        self._marks, self._wanted = {}, wanted
        self._write(wanted)

    def share_out(self, agents: Collection[str]) -> None:
        """Lets agents of a pool that have nothing left to do take over clients that wait for another agent of it."""
        states = {agent: state for agent, state in self._states.items() if agent in agents}
        free = [agent for agent in agents if self._is_free(agent)]
        waiting = [client for state in states.values() for client in state.open]
        if not free or not waiting or self._wanted is None:
            return
        work = {agent: clients for agent, clients in self._wanted.work.items() if agent in agents}
        busy = {agent: state.at_work for agent, state in states.items() if state.at_work}
        changed = moved(work, open_clients=waiting, busy=busy, free=free)
        if changed == work:
            return
        rest = {agent: clients for agent, clients in self._wanted.work.items() if agent not in agents}
        self._wanted = self._wanted.changed(work={**rest, **changed})
        self._write(self._wanted)
        for agent, clients in changed.items():
            states[agent].open = [client for client in clients if client in waiting]

    def ready(self) -> set[str]:
        """Returns the agents that have said something in this coordinator's time, and have not ended."""
        return {agent for agent, beat in self._heard.items() if not beat.ended}

    @property
    def served(self) -> dict[str, str]:
        """Client -> the agent that worked for it last."""
        return dict(self._served)

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
            states = [state for state in self._states.values() if state.open]
            for state, seen in zip(states, parallel_map(self._read, states, threads=TOGETHER), strict=True):
                facts += self._hear(state, seen)
        except UnreachableError as error:
            pause_s = self._patience.failed(error.problem)
            if pause_s is None:
                raise
            self._next_at = time.monotonic() + pause_s
            return facts
        if self._patience.failing_s:
            for state in self._states.values():
                state.excuse(self._patience.failing_s)
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
        self._heard.pop(agent, None)
        state = self._states.get(agent)
        given_up = [] if state is None else list(state.open)
        if state is not None:
            state.open.clear()
        return given_up

    def forget(self, agent: str) -> None:
        """Notes that an agent has ended, so that nobody counts on it."""
        self._heard.pop(agent, None)

    def open_of(self, agent: str) -> list[str]:
        """Returns the clients of an agent whose tasks have not ended."""
        state = self._states.get(agent)
        return [] if state is None else list(state.open)

    def finish(self, *, wanted: bool, deadline_s: float | None) -> Iterator[Outcome]:
        """Asks for nothing more of a call; yields a failure for each open client if it is still wanted.

        Args:
            wanted: Whether its tasks are.
            deadline_s: The deadline that they had; None: none.
        """
        late = {client: self.why_open(client) for client in self.open} if wanted else {}
        self.rest()
        for client, why in late.items():
            words = "not done" if deadline_s is None else f"not done before the deadline of {deadline_s:g} s"
            yield Outcome(client, 1, words + (f"; {why}" if why else ""))

    def rest(self) -> None:
        """Wants nothing for now: agents at work give up what nobody needs any longer."""
        if self.open or self._resting is None:
            self._write(Wants(**self._settings()))
        for state in self._states.values():
            state.open.clear()

    def end(self) -> None:
        """Tells the agents that the run wants nothing more of them."""
        self._store.delete(paths.wants(self._run_id))
        self._resting = True

    def _write(self, wanted: Wants) -> None:
        self._store.write_ref(paths.wants(self._run_id), wanted.to_values())
        self._resting = not wanted.call

    def _read(self, state: AgentState) -> Seen | None:
        """Reads an agent's beat if it is another than the last; one that is no JSON is as if it had said nothing."""
        try:
            return self._store.read_ref_if_changed(paths.beats(self._run_id, state.agent), self._marks.get(state.agent))
        except CheckpointError:
            return Seen(None, None)

    def _hear(self, state: AgentState, seen: Seen | None) -> list[Fact]:
        if seen is None:
            return state.wait(now=time.monotonic())
        self._marks[state.agent] = seen.mark
        try:
            beat = None if seen.value is None else Beat.of(seen.value)
        except CheckpointError:  # of another version of lwfed: as if it had said nothing
            beat = None
        if beat is not None:
            self._heard[state.agent] = beat
            if beat.call == state.call:
                self._served |= dict.fromkeys([*beat.outcomes, *filter(None, [beat.client])], state.agent)
        now = time.monotonic()
        return [*state.hear(beat, now=now), *state.wait(now=now)]

    def _is_free(self, agent: str) -> bool:
        """Whether an agent has done its part of the call, and is there."""
        state, beat = self._states.get(agent), self._heard.get(agent)
        return state is not None and not state.open and beat is not None and not beat.ended and beat.call == state.call

    def _poll_s(self) -> float:
        """Returns the seconds between an agent's reads of what is wanted: the more agents, the more."""
        self._spec = runs.with_counted_clients(self._spec, store=self._store, run_id=self._run_id)
        agents = self._spec.federation.num_clients or 1
        return min(max(agents / REQUESTS_PER_S, POLLS_S[0]), POLLS_S[1])

    def _settings(self) -> dict[str, object]:
        kubernetes = self._spec.kubernetes
        return {
            "run_id": self._run_id,
            "name": self._spec.name,
            "retries": kubernetes.retries if self._pods else self._spec.launch.retries,
            "poll_s": self._poll_s(),
            "heartbeat_s": kubernetes.heartbeat_s,
            "heartbeat_timeout_s": kubernetes.heartbeat_timeout_s,
        }
