"""What `lwfed cancel` does: ends a run, its Jobs, and what of its pods would wait for ever."""

from __future__ import annotations

import time
from typing import Any

from lwfed.launch.kubernetes.api import Cluster, NotConfiguredError, connect
from lwfed.launch.kubernetes.jobs import delete_run_jobs
from lwfed.launch.kubernetes.names import run_selector
from lwfed.types.errors import LwfedError, UnreachableError
from pipelines.client.cluster import end_waiting_pods
from pipelines.client.connection import Access
from pipelines.client.runs import KnownRun, get_run, is_over, open_run
from pipelines.commands.screen import Screen, error_values

END_S = 90.0
"""Seconds for a terminated run to end: its coordinator has 30 to end, and then the exit task runs."""
POLL_S = 0.5


def cancel_run(access: Access, text: str, *, screen: Screen) -> None:
    """Ends a run, and what works for it in the cluster.

    Its Jobs are deleted at once, and again when the run is over: a coordinator that still lives may make new ones.
    Pods of its tasks that wait for an image or for room are deleted then too.

    Args:
        access: The server.
        text: Any name of the run.
        screen: Where to say so.

    Raises:
        UnreachableError: The server does not answer; or KUBECONFIG's cluster does not, and Jobs may go on.
        LwfedError: The server refuses.
    """
    run, found = open_run(access, text)
    jobs: list[str] | None = None  # None: the cluster was not asked
    pods: list[str] | None = None
    cluster: Cluster | None = None
    error: LwfedError | None = None
    terminated = terminate(run, found)
    if terminated:
        screen.say(f"{run.title} is being terminated")
    try:
        cluster = connect(run.namespace)
        jobs = _delete_jobs(cluster, run) if terminated else None
    except LwfedError as trouble:
        error = trouble
    found = _wait_for_end(run, seconds=END_S if terminated else 0)
    if not terminated:
        screen.say(f"{run.title} was over already: {found.state}")
    elif is_over(found):
        screen.say(f"{run.title} is over")
    else:
        screen.say(f"{run.title} has not ended within {END_S:.0f} s: it is {found.state}; what is committed stands")
    if cluster is not None:
        try:
            pods = end_waiting_pods(cluster, run.id) if is_over(found) else []
            jobs = [*(jobs or ()), *_delete_jobs(cluster, run)]
            error = None
        except LwfedError as trouble:
            error = trouble
        finally:
            cluster.close()
    if jobs is not None:
        screen.say(f"{len(jobs)} Jobs of its clients are deleted; what is committed stands")
    if pods:
        screen.say(f"deleted, since they would wait for ever: {', '.join(pods)}")
    if isinstance(error, NotConfiguredError):
        screen.say(
            "KUBECONFIG names no cluster, so its Jobs are left to the run's own exit task, and clients end by "
            f"themselves when they miss the coordinator; to end them now: {_by_hand(run)}"
        )
        error = None
    values = {"run_id": run.name, "kfp_run_id": run.id, "terminated": terminated, "state": found.state}
    deleted = {"jobs_deleted": None if jobs is None else len(jobs), "pods_deleted": pods}
    screen.result({**values, **deleted, "error": error_values(error)})
    if isinstance(error, UnreachableError):
        raise UnreachableError(f"Jobs of {run.title} may go on for a while: {error.problem}", remedy=_by_hand(run))
    if error is not None:
        raise error


def terminate(run: KnownRun, found: Any) -> bool:
    """Ends a run's tasks; False where it was over already."""
    if is_over(found):
        return False
    try:
        run.kfp.call(run.kfp.client.terminate_run, run.id, about=f"to end the run {run.id}")
    except LwfedError as error:
        if "Row not found" in str(error):  # it ended in between
            return False
        raise
    return True


def _delete_jobs(cluster: Cluster, run: KnownRun) -> list[str]:
    if run.name is None:
        raise LwfedError(
            f"Jobs of the run {run.id} may go on: their names are in a store that does not answer",
            remedy=f"kubectl -n {run.namespace} delete jobs -l 'lwfed/run in (NAME-{run.id[:8]})', NAME as in the spec",
        )
    return delete_run_jobs(cluster, run.name)


def _wait_for_end(run: KnownRun, *, seconds: float) -> Any:
    ends_at = time.monotonic() + seconds
    while True:
        found = get_run(run.kfp, run.id)
        if is_over(found) or time.monotonic() > ends_at:
            return found
        time.sleep(POLL_S)


def _by_hand(run: KnownRun) -> str:
    """Returns the commands that do the same without us."""
    delete = f"kubectl -n {run.namespace} delete"
    jobs = f"{delete} jobs -l '{run_selector(run.name)}'; " if run.name else ""
    return f"{jobs}{delete} pods -l pipeline/runid={run.id} --field-selector status.phase=Pending"
