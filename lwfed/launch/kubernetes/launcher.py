"""Clients as pods of a cluster: an Indexed Job for each pool and round, then one Job for the server's part.

The pods run the same steps as a laptop does, with their tasks from the store. A coordinator that dies leaves the Jobs
running; the next one finds them by their names and goes on, and without a next one they end by themselves.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from typing import Any

from lwfed.catalog.launchers.kubernetes import DESCRIPTION
from lwfed.formats import bytes_text
from lwfed.launch.kubernetes.api import connect
from lwfed.launch.kubernetes.collect import Collector
from lwfed.launch.kubernetes.jobs import Call, Jobs, delete_run_jobs, surroundings
from lwfed.launch.kubernetes.names import committed
from lwfed.run.launcher import Emit, Outcome
from lwfed.run.tasks import PoolTask, RoundTask, ServerTask
from lwfed.spec.kubernetes import PoolSpec
from lwfed.spec.run import RunSpec
from lwfed.store import paths
from lwfed.store.protocol import Store
from lwfed.types.errors import CheckpointError, error_of


class KubernetesLauncher:
    """The launcher of a cluster.

    Args:
        spec: The experiment.
        store: The run's store, which pods reach under the same URI.
        run_id: The run.

    Raises:
        UnreachableError: No cluster is configured, or it does not answer.
    """

    remote = DESCRIPTION.remote

    def __init__(self, spec: RunSpec, *, store: Store, run_id: str) -> None:
        self._settings = spec.kubernetes
        self._store, self._run_id = store, run_id
        self._cluster = connect(spec.kubernetes.namespace)
        around = surroundings(self._cluster, run_id=run_id)
        self._jobs = Jobs(self._settings, cluster=self._cluster, store=store, run_id=run_id, around=around)

    def clients(self, step: str, tasks: Sequence[PoolTask], *, deadline_s: float, emit: Emit) -> Iterator[Outcome]:
        """Runs tasks in the pods of their clients' pools; see `Launcher.clients`."""
        if not tasks:
            return
        of_client = {task.client: task for task in tasks}
        work = [
            (pool, [_placed(of_client[client], pool) for client in clients])
            for pool, clients in self._settings.by_pool(of_client)
        ]
        call = self._jobs.call(step, tasks[0], deadline_s=deadline_s)
        collector = self._collector(call, work, emit=emit)
        with closing(collector.outcomes()) as outcomes:
            for outcome in outcomes:
                if outcome.exit_code == CheckpointError.exit_code:  # all read the same; else a pod's trouble is its own
                    collector.end()
                    raise CheckpointError(f"{outcome.client}: {outcome.reason}")
                yield outcome

    def server(self, step: str, task: ServerTask, *, emit: Emit) -> None:
        """Runs the server's step in a pod of its pool, unless its result is committed already."""
        if committed(self._store, step, task):
            return
        pool = self._settings.server
        call = self._jobs.call(step, task, deadline_s=None)
        collector = self._collector(call, [(pool, [_placed(task, pool)])], emit=emit)
        for outcome in list(collector.outcomes()):  # to the end: a Job that goes on for nobody is removed there
            if outcome.exit_code:
                raise error_of(outcome.exit_code, outcome.reason)

    def close(self) -> None:
        """Lets go of connections; pods go on."""
        self._cluster.close()

    def _collector(
        self, call: Call, work: Sequence[tuple[PoolSpec, Sequence[PoolTask | ServerTask]]], *, emit: Emit
    ) -> Collector:
        task = work[0][1][0]
        predicted = _predicted_memory(self._store, self._run_id, task) if call.step == "train-client" else ""
        return Collector(
            call, work, jobs=self._jobs, cluster=self._cluster, settings=self._settings, emit=emit,
            predicted=predicted,
        )  # fmt: skip


def delete_jobs(run_id: str, *, namespace: str) -> int:
    """Removes all Jobs of a run and their pods. Returns how many there were.

    Raises:
        UnreachableError: No cluster is configured, it does not answer, or it does not let us.
    """
    cluster = connect(namespace)
    try:
        return len(delete_run_jobs(cluster, run_id))
    finally:
        cluster.close()


def _placed(task: Any, pool: PoolSpec) -> Any:
    """Returns a task with the places of its pool's pods."""
    cache = None if pool.cache is None else f"{pool.cache}/{getattr(task, 'run_id', None) or 'runs'}"
    place = task.place.model_copy(update={"cache": cache})
    if pool.data_root is not None:
        place = place.model_copy(update={"root": pool.data_root})
    return task.model_copy(update={"place": place})


def _predicted_memory(store: Store, run_id: str, task: PoolTask | ServerTask) -> str:
    """Says what the ledger predicts of a client's memory; empty where nothing is known."""
    if not isinstance(task, RoundTask):
        return ""
    run = store.read_ref(paths.run(run_id)) or {}
    stage = next((item["stage"] for item in run.get("stages", ()) if item["key"] == task.stage_key), None)
    cost = next((cost for cost in run.get("predicted", ()) if cost["stage"] == stage), None)
    if cost is None:
        return ""
    return f"the ledger predicts {bytes_text(cost['peak_bytes'])} of tensors, besides 0.5Gi or more of libraries"
