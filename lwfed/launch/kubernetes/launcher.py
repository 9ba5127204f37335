"""Runs clients as pods of a cluster: an Indexed Job per pool and round, then one Job for the server's part.

The pods run the same steps as a laptop does, and read their tasks from the store. When a coordinator dies, its Jobs
keep running: the next coordinator finds them by their names and continues; without one they end by themselves. Where a
pool's pods stay for a stage, or its clients' owners run agents, these are asked instead (`staying.py`).
"""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack, closing
from functools import partial
from typing import Any

from lwfed.catalog.launchers.kubernetes import DESCRIPTION
from lwfed.formats import bytes_text
from lwfed.launch.kubernetes.api import connect
from lwfed.launch.kubernetes.collect import Collector, PoolWork
from lwfed.launch.kubernetes.jobs import Jobs, job_context
from lwfed.launch.kubernetes.manifests import Call
from lwfed.launch.kubernetes.names import call_labels
from lwfed.launch.kubernetes.staying import RESTARTS, Staying, stays
from lwfed.run.agents import SERVER
from lwfed.run.launcher import Emit, Outcome
from lwfed.run.tasks import PodTask, PoolTask, RoundTask, ServerTask
from lwfed.spec.kubernetes import PoolSpec
from lwfed.spec.run import RunSpec
from lwfed.store import paths
from lwfed.store.protocol import Store
from lwfed.types.errors import CheckpointError, error_of

RESULTS = {"aggregate-round": paths.round_checkpoint, "evaluate-round": paths.round_metrics}
"""Steps of the server whose result in the store shows that they are done, and its key."""
TICK_S = 0.05
"""Seconds between two looks while one is due."""


class KubernetesLauncher:
    """The launcher for a Kubernetes cluster.

    Args:
        spec: The experiment.
        store: The run's store; pods must reach it under the same URI.
        run_id: The run.

    Raises:
        UnreachableError: No cluster is configured, or it does not answer.
    """

    remote = DESCRIPTION.remote
    held = None

    def __init__(self, spec: RunSpec, *, store: Store, run_id: str) -> None:
        self._settings = spec.kubernetes
        self._store, self._run_id = store, run_id
        self._cluster = connect(spec.kubernetes.namespace)
        context = job_context(self._cluster, run_id=run_id)
        make_jobs = partial(Jobs, cluster=self._cluster, store=store, run_id=run_id, context=context)
        self._jobs = make_jobs(self._settings)
        stay_jobs = make_jobs(self._settings.model_copy(update={"retries": RESTARTS}))
        self._staying = Staying(spec, jobs=stay_jobs, store=store, run_id=run_id)

    def clients(
        self, step: str, tasks: Sequence[PoolTask], *, deadline_s: float, emit: Emit, need: int | None = None
    ) -> Iterator[Outcome]:
        """Runs tasks in the pods of their clients' pools, and asks clients' agents; see `Launcher.clients`."""
        if not tasks:
            return
        of_client = {task.client: task for task in tasks}
        work = [
            (pool, [_in_pool(of_client[client], pool) for client in clients])
            for pool, clients in self._settings.by_pool(of_client)
        ]
        limit_s = None if deadline_s == float("inf") else deadline_s
        with closing(self._outcomes(step, work, deadline_s=limit_s, emit=emit, need=need)) as outcomes:
            yield from outcomes

    def server(self, step: str, task: ServerTask, *, emit: Emit) -> None:
        """Runs the server's step in a pod of the server pool, unless its result is committed already."""
        result = RESULTS.get(step)
        if result and isinstance(task, RoundTask) and self._store.has(result(task.stage_key, task.server_round)):
            return
        if not isinstance(task, RoundTask):
            self._staying.release(over=step == "finish")
        pool = self._settings.server
        work = [(pool, [_in_pool(task, pool)])]
        for outcome in list(self._outcomes(step, work, deadline_s=None, emit=emit, need=None)):  # to the end
            if outcome.exit_code:
                raise error_of(outcome.exit_code, outcome.reason)

    def close(self) -> None:
        """Closes connections; pods keep running, but for those that stayed for a stage that is committed."""
        self._staying.close()
        self._cluster.close()

    def _outcomes(
        self, step: str, work: Sequence[PoolWork], *, deadline_s: float | None, emit: Emit, need: int | None
    ) -> Generator[Outcome]:
        """Yields the outcomes of tasks in Jobs of their own, and of those of agents, as they end."""
        staying = [(pool, tasks) for pool, tasks in work if stays(pool, tasks[0])]
        others = [(pool, tasks) for pool, tasks in work if not stays(pool, tasks[0])]
        if not staying:
            yield from self._sound(self._collector(step, others, deadline_s=deadline_s, emit=emit), need=need)
            return
        missing = sum(len(tasks) for _, tasks in work) if need is None else need
        ends_at = time.monotonic() + (deadline_s or float("inf"))
        agents = self._staying
        with ExitStack() as stack:
            collector = self._collector(step, others, deadline_s=deadline_s, emit=emit) if others else None
            if collector is not None:
                stack.enter_context(collector.collecting())
            agents.begin(step, staying, deadline_s=deadline_s, emit=emit)
            while missing > 0 and (left_s := ends_at - time.monotonic()) > 0:
                if not agents.open and (collector is None or not collector.open):
                    break
                ended = [*agents.tick(), *(() if collector is None else collector.tick(0.0))]
                for outcome in ended:
                    _refuse_damaged(outcome)
                    missing -= outcome.exit_code == 0
                    yield outcome
                if not ended:
                    time.sleep(min(agents.due_in_s or TICK_S, left_s))
            yield from agents.finish(wanted=missing > 0)
            if collector is not None:
                yield from collector.finish(wanted=missing > 0)

    def _sound(self, collector: Collector, *, need: int | None) -> Generator[Outcome]:
        """Yields a collector's outcomes; a damaged checkpoint ends all, since all clients read the same."""
        with closing(collector.outcomes(need=need)) as outcomes:
            for outcome in outcomes:
                if outcome.exit_code == CheckpointError.exit_code and outcome.client != SERVER:
                    collector.end()
                _refuse_damaged(outcome)
                yield outcome

    def _collector(self, step: str, work: Sequence[PoolWork], *, deadline_s: float | None, emit: Emit) -> Collector:
        task = work[0][1][0]
        labels = call_labels(step, task, run_id=self._run_id)
        predicted = _predicted_memory(self._store, self._run_id, task) if step == "train-client" else ""
        call = Call(step=step, labels=labels, deadline_s=deadline_s)
        return Collector(call, work, jobs=self._jobs, emit=emit, predicted=predicted)


def _refuse_damaged(outcome: Outcome) -> None:
    """Raises CheckpointError if a client found the checkpoint damaged that all clients read."""
    if outcome.exit_code == CheckpointError.exit_code and outcome.client != SERVER:
        raise CheckpointError(f"{outcome.client}: {outcome.reason}")


def _in_pool(task: Any, pool: PoolSpec) -> Any:
    """Returns a task with the data root and cache folder of its pool's pods."""
    cache = None if pool.cache is None else f"{pool.cache}/{getattr(task, 'run_id', None) or 'runs'}"
    place = task.place.model_copy(update={"cache": cache, "shared": pool.cache})
    if pool.data_root is not None:
        place = place.model_copy(update={"root": pool.data_root})
    return task.model_copy(update={"place": place})


def _predicted_memory(store: Store, run_id: str, task: PodTask) -> str:
    """Returns the ledger's prediction of a client's memory in words; empty if unknown."""
    if not isinstance(task, RoundTask):
        return ""
    run = store.read_ref(paths.run(run_id)) or {}
    stage = next((item["stage"] for item in run.get("stages", ()) if item["key"] == task.stage_key), None)
    cost = next((cost for cost in run.get("predicted", ()) if cost["stage"] == stage), None)
    if cost is None:
        return ""
    return f"the ledger predicts {bytes_text(cost['peak_bytes'])} for tensors, plus 0.5Gi or more for libraries"
