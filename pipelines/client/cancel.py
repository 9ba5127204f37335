"""What `lwfed cancel` does: ends a run, its Jobs, and what of its pods would wait for ever."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from rich.console import Console

from lwfed.drive.console import print_json
from lwfed.launch.kubernetes.api import Cluster, NotConfiguredError
from lwfed.launch.kubernetes.api import connect as connect_cluster
from lwfed.launch.kubernetes.jobs import delete_run_jobs
from lwfed.launch.kubernetes.names import run_selector
from lwfed.types.errors import LwfedError, UnreachableError
from pipelines.client.cluster import end_waiting_pods
from pipelines.client.kubeflow import Access, Kfp
from pipelines.client.runs import Facts, get_run, is_over, namespace_of, open_run, terminate
from pipelines.client.wait import error_values

END_S = 90.0
"""Seconds for a terminated run to end: its coordinator has 30 to end, and then the exit task runs."""
POLL_S = 0.5


@dataclass(slots=True)
class Ended:
    """What a cancellation has ended; None: the cluster was not asked.

    Attributes:
        jobs: Number of Jobs that were deleted.
        pods: Pods that were deleted because they waited, and would have waited for ever.
    """

    jobs: int | None = None
    pods: tuple[str, ...] | None = None


def cancel_run(access: Access, run: str, *, console: Console, as_json: bool) -> None:
    """Ends a run, and what works for it in the cluster.

    Its Jobs are deleted at once, and again when the run is over: a coordinator that still lives may make new ones.
    Pods of its tasks that wait for an image or for room are deleted then too.

    Args:
        access: The server.
        run: Any name of the run.
        console: For people.
        as_json: Print one JSON object as the last line.

    Raises:
        UnreachableError: The server does not answer; or KUBECONFIG's cluster does not, and Jobs may go on.
        LwfedError: The server refuses.
    """
    kfp, found, facts = open_run(access, run)
    run_id, namespace = str(found.run_id), namespace_of(access, kfp, facts)
    name = facts.name or run_id

    def say(line: str) -> None:
        console.print(line, highlight=False, markup=False, soft_wrap=True)

    terminated = terminate(kfp, found)
    ended, error = Ended(), None
    if terminated:
        say(f"{name} is being terminated")
    cluster: Cluster | None = None
    try:
        cluster = connect_cluster(namespace)
        if terminated:
            _end(cluster, facts, run_id, ended)
    except LwfedError as trouble:
        error = trouble
    found = _until_over(kfp, run_id) if terminated else get_run(kfp, run_id)
    if not terminated:
        say(f"{name} was over already: {found.state}")
    elif is_over(found):
        say(f"{name} is over")
    else:
        say(f"{name} has not ended within {END_S:.0f} s: it is {found.state}; what is committed stands")
    if cluster is not None:
        try:
            ended.pods = end_waiting_pods(cluster, run_id) if is_over(found) else ()
            _end(cluster, facts, run_id, ended)
            error = None
        except LwfedError as trouble:
            error = trouble
        finally:
            cluster.close()
    for line in _lines(ended):
        say(line)
    if isinstance(error, NotConfiguredError):
        say(_left_alone(facts, run_id, namespace))
        error = None
    if as_json:
        values = {"run_id": facts.name, "kfp_run_id": run_id, "terminated": terminated, "state": found.state}
        left = {"jobs_deleted": ended.jobs, "pods_deleted": ended.pods and list(ended.pods)}
        print_json({**values, **left, "error": error_values(error)})
    if error is not None:
        raise _may_go_on(error, facts, run_id, namespace)


def _end(cluster: Cluster, facts: Facts, run_id: str, ended: Ended) -> None:
    if facts.name is None:
        raise LwfedError(
            f"Jobs of the run {run_id} may go on: their names are in a store that does not answer",
            remedy=f"kubectl -n {cluster.namespace} delete jobs -l 'lwfed/run in (NAME-{run_id[:8]})', NAME as in the "
            "spec",
        )
    ended.jobs = (ended.jobs or 0) + len(delete_run_jobs(cluster, facts.name))


def _until_over(kfp: Kfp, run_id: str) -> Any:
    ends_at = time.monotonic() + END_S
    while True:
        run = get_run(kfp, run_id)
        if is_over(run) or time.monotonic() > ends_at:
            return run
        time.sleep(POLL_S)


def _lines(ended: Ended) -> list[str]:
    lines = [] if ended.jobs is None else [f"{ended.jobs} Jobs of its clients are deleted; what is committed stands"]
    if ended.pods:
        lines.append(f"deleted, since they would wait for ever: {', '.join(ended.pods)}")
    return lines


def _by_hand(facts: Facts, run_id: str, namespace: str) -> str:
    jobs = f"kubectl -n {namespace} delete jobs -l '{run_selector(facts.name)}'; " if facts.name else ""
    return f"{jobs}kubectl -n {namespace} delete pods -l pipeline/runid={run_id} --field-selector status.phase=Pending"


def _left_alone(facts: Facts, run_id: str, namespace: str) -> str:
    return (
        "KUBECONFIG names no cluster, so its Jobs are left to the run's own exit task, and clients end by themselves "
        f"when they miss the coordinator; to end them now: {_by_hand(facts, run_id, namespace)}"
    )


def _may_go_on(error: LwfedError, facts: Facts, run_id: str, namespace: str) -> LwfedError:
    if not isinstance(error, UnreachableError):
        return error
    return UnreachableError(
        f"Jobs of {facts.name or run_id} may go on for a while: {error.problem}",
        remedy=_by_hand(facts, run_id, namespace),
    )
