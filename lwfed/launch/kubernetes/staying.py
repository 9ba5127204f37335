"""Clients and the server whose agents stay: in pods of this cluster, or on machines that their owners run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from lwfed.launch.agents.asking import GONE_S, Asking
from lwfed.launch.agents.places import spread
from lwfed.launch.kubernetes.jobs import Jobs
from lwfed.launch.kubernetes.residents import Residents
from lwfed.run import runs
from lwfed.run.agents import SERVER
from lwfed.run.events import ClientLog, Emit, Warning
from lwfed.run.launcher import Outcome
from lwfed.run.tasks import AgentTask, PodTask, RoundTask
from lwfed.spec.kubernetes import PoolSpec
from lwfed.spec.run import RunSpec
from lwfed.store import paths
from lwfed.store.protocol import Store

RESTARTS = 100
"""Retries of a pod that stays, within its Job: it has a whole stage to die in, and its agent counts its own tries."""


def stays(pool: PoolSpec, task: PodTask) -> bool:
    """Whether a task is an agent's: those of remote pools always, those of pools that stay within a stage."""
    return pool.remote or (pool.resident == "stage" and isinstance(task, RoundTask))


class Staying:
    """Asks agents, and keeps the pods of those that are in this cluster.

    Args:
        spec: The experiment.
        jobs: Creates and deletes the Jobs of pods that stay.
        store: The store.
        run_id: The run.
    """

    def __init__(self, spec: RunSpec, *, jobs: Jobs, store: Store, run_id: str) -> None:
        self._jobs, self._store, self._run_id = jobs, store, run_id
        self._spec = spec
        self._asking = Asking(spec, store=store, run_id=run_id, warn=self._warn)
        self._residents: Residents | None = None
        self._tasks: Mapping[str, Sequence[AgentTask]] = {}
        self._pools: dict[str, PoolSpec] = {}
        self._deadline_s: float | None = None
        self._emit: Emit = _ignore

    def begin(
        self, step: str, work: Sequence[tuple[PoolSpec, Sequence[PodTask]]], *, deadline_s: float | None, emit: Emit
    ) -> None:
        """Asks the agents of pools for tasks, and starts those of this cluster that are not there."""
        self._emit, self._deadline_s = emit, deadline_s
        asked: dict[str, list[PodTask]] = {}
        self._tasks, self._pools = {}, {pool.name: pool for pool, _ in work}
        for pool, tasks in work:
            of_client = {_client_of(task): task for task in tasks}
            if pool.remote:
                asked |= {client: [task] for client, task in of_client.items()}
                continue
            places = self._places(pool, tasks[0], emit=emit)
            chosen = spread(
                list(of_client), places=list(places), ready=self._asking.ready(), served=self._asking.served
            )
            asked |= {name: [of_client[client] for client in clients] for name, clients in chosen.items()}
            self._tasks = {**self._tasks, pool.name: [places[name] for name in chosen]}
        self._asking.begin(step, asked, patience_s=GONE_S if deadline_s is None else None)
        for name, agents in self._tasks.items():
            self._start(self._pools[name], agents)

    @property
    def open(self) -> list[str]:
        """The clients whose tasks have not ended."""
        return self._asking.open

    @property
    def due_in_s(self) -> float:
        """Seconds until the next look; 0 if it is due."""
        return self._asking.due_in_s

    def tick(self) -> Iterator[Outcome]:
        """Hears the agents and looks at their pods; yields the tasks that have ended."""
        if self._asking.due_in_s == 0:
            for fact in self._asking.look():
                if isinstance(fact, Outcome):
                    yield fact
                else:
                    self._emit(fact)
        if self._residents is None:
            return
        for ended in list(self._residents.tick()):
            yield from self._on_end(ended)
        for agents in self._tasks.values():
            self._asking.share_out([agent.client for agent in agents])

    def finish(self, *, wanted: bool) -> Iterator[Outcome]:
        """Asks for nothing more of a call; yields a failure for each open client if it is still wanted."""
        yield from self._asking.finish(wanted=wanted, deadline_s=self._deadline_s)

    def release(self, *, over: bool = False) -> None:
        """Deletes the pods of the stage that was at work; if the run is over, tells its agents elsewhere."""
        if self._residents is not None:
            self._residents.release()
            self._residents = None
        if over:
            self._asking.end()

    def close(self) -> None:
        """Deletes the pods of a stage that is committed; those of another wait for its next coordinator."""
        residents = self._residents
        if residents is not None and self._store.has(paths.stage_checkpoint(residents.stage_key)):
            self.release()
        elif residents is not None:
            residents.leave()

    def _places(self, pool: PoolSpec, task: PodTask, *, emit: Emit) -> dict[str, AgentTask]:
        """Returns the tasks of the agents of a pool by their names: as many as it may have pods, or has clients."""
        assert isinstance(task, RoundTask)
        if self._residents is not None and self._residents.stage_key != task.stage_key:
            self.release()
        if self._residents is None:
            self._residents = Residents(self._jobs, run_id=self._run_id, stage_key=task.stage_key, emit=emit)
        names = [f"{task.stage_key[:8]}-{pool.name}-{index}" for index in range(self._size(pool))]
        return {
            name: AgentTask(
                store=task.store,
                run_id=self._run_id,
                client=name,
                stage_key=task.stage_key,
                idle_s=pool.idle_s,
                place=task.place,
            )
            for name in names
        }

    def _size(self, pool: PoolSpec) -> int:
        """Returns how many pods of a pool stay: as many as it has clients, or fewer if it is limited."""
        settings = self._spec.kubernetes
        if pool.name == settings.server.name:
            return 1
        self._spec = runs.with_counted_clients(self._spec, store=self._store, run_id=self._run_id)
        clients = {named.name: of for named, of in settings.by_pool(self._spec.federation.eligible_ids)}
        return min(len(clients[pool.name]), pool.parallel or len(clients[pool.name]))

    def _start(self, pool: PoolSpec, agents: Sequence[AgentTask]) -> None:
        if self._residents is not None:
            self._residents.ensure(pool, agents)

    def _on_end(self, ended: Outcome) -> Iterator[Outcome]:
        """Starts an agent again that ended while it was idle, if it is needed; gives up one that failed."""
        if ended.exit_code:
            for client in self._asking.fail(ended.client):
                yield Outcome(client, ended.exit_code, ended.reason)
            return
        self._asking.forget(ended.client)
        for name, agents in self._tasks.items():
            needed = [agent for agent in agents if agent.client == ended.client and self._asking.open_of(agent.client)]
            if needed:
                self._emit(ClientLog(client=ended.client, line="its pod was idle and ended; another takes its place"))
                self._start(self._pools[name], needed)

    def _warn(self, line: str) -> None:
        self._emit(Warning(message=line))


def _client_of(task: PodTask) -> str:
    return str(getattr(task, "client", SERVER))


def _ignore(_event: object) -> None:
    """Drops an event."""
