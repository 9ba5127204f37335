"""`lwfed cancel`: ends a run, its Jobs, and pods that would wait forever."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING, Any

from lwfed.cli.options import Json
from lwfed.launch.kubernetes.names import run_selector
from lwfed.types.errors import LwfedError, UnreachableError
from pipelines.client.cluster import end_waiting_pods
from pipelines.client.connection import Access
from pipelines.client.runs import KnownRun, is_over, open_run, wait_until
from pipelines.commands.screen import error_values, make_screen
from pipelines.options import KfpRun

if TYPE_CHECKING:
    from lwfed.launch.kubernetes.api import Cluster

END_S = 90.0
"""Seconds to wait for the end of a terminated run: its coordinator has 30 s, and then the exit task runs."""
POLL_S = 0.5


def cancel(run: KfpRun, *, access: Access, as_json: Json = False) -> None:
    """End a pipeline run and the Jobs of its clients; committed work is kept.

    After Kubeflow's own Terminate, the run's exit task deletes the Jobs about a minute later, if its image can be
    pulled. With a KUBECONFIG, this command deletes them at once, and again when the run has ended, since a coordinator
    that still runs may create new ones. It also deletes pods that would wait forever.
    """
    from lwfed.launch.kubernetes.api import NotConfiguredError, connect

    screen, (known, found) = make_screen(as_json), open_run(access, run)
    jobs: list[str] | None = None  # None: not requested from the cluster
    pods: list[str] | None = None
    error: LwfedError | None = None

    def clean_up(*, ended: bool) -> None:
        """Deletes the run's Jobs and, once it has ended, waiting pods; notes what it deleted, or what prevented it."""
        nonlocal jobs, pods, error
        try:
            with closing(connect(known.namespace)) as cluster:
                pods = end_waiting_pods(cluster, known.id) if ended else []
                jobs = [*(jobs or ()), *_delete_jobs(cluster, known)]
                error = None
        except LwfedError as problem:
            error = problem

    terminated = terminate(known, found)
    if terminated:
        screen.say(f"{known.title} is being terminated")
        clean_up(ended=False)
    found = wait_until(known, over=True, seconds=END_S if terminated else 0, poll_s=POLL_S)
    if not terminated:
        screen.say(f"{known.title} had already ended: {found.state}")
    elif is_over(found):
        screen.say(f"{known.title} has ended")
    else:
        screen.say(f"{known.title} has not ended within {END_S:.0f} s: it is {found.state}; committed work is kept")
    clean_up(ended=is_over(found))
    if jobs is not None:
        screen.say(f"deleted {len(jobs)} Jobs of its clients; committed work is kept")
    if pods:
        screen.say(f"deleted pods that would wait forever: {', '.join(pods)}")
    if isinstance(error, NotConfiguredError):
        screen.say(
            "KUBECONFIG names no cluster, so the run's exit task deletes its Jobs, and clients end by themselves "
            f"without a coordinator; to end them now: {_by_hand(known)}"
        )
        error = None
    values = {"run_id": known.name, "kfp_run_id": known.id, "terminated": terminated, "state": found.state}
    deleted = {"jobs_deleted": None if jobs is None else len(jobs), "pods_deleted": pods}
    screen.result({**values, **deleted, "error": error_values(error)})
    if isinstance(error, UnreachableError):
        raise UnreachableError(
            f"Jobs of {known.title} may keep running for a while: {error.problem}", remedy=_by_hand(known)
        )
    if error is not None:
        raise error


def terminate(run: KnownRun, found: Any) -> bool:
    """Terminates a run; returns False if it had already ended."""
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
            f"Jobs of the run {run.id} may keep running: the store with their names does not answer",
            remedy=f"kubectl -n {run.namespace} delete jobs -l 'lwfed/run in (NAME-{run.id[:8]})' (NAME: see the spec)",
        )
    from lwfed.launch.kubernetes.jobs import delete_run_jobs

    return delete_run_jobs(cluster, run.name)


def _by_hand(run: KnownRun) -> str:
    """Returns the kubectl commands that do the same."""
    delete = f"kubectl -n {run.namespace} delete"
    jobs = f"{delete} jobs -l '{run_selector(run.name)}'; " if run.name else ""
    return f"{jobs}{delete} pods -l pipeline/runid={run.id} --field-selector status.phase=Pending"
