"""`lwfed logs`: prints the logs of a run's tasks, or of a client's pods."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from contextlib import closing, suppress
from typing import Annotated, Any

import typer

from lwfed import environment
from lwfed.run import runs
from lwfed.store.opening import open_store
from lwfed.types.errors import LwfedError, NotFoundError, UnreachableError
from pipelines.client.cluster import ClientPod, client_pods
from pipelines.client.connection import Access
from pipelines.client.pace import left_running, usual_pace, with_retries
from pipelines.client.runs import KnownRun, get_run, is_over, open_run
from pipelines.commands.screen import make_screen
from pipelines.follow.follow import outcome_of
from pipelines.logs import PodLogs, own_lines
from pipelines.options import KfpRun
from pipelines.states.records import Pod, Snapshot
from pipelines.states.workflow import look


def logs(
    run: KfpRun,
    stage: Annotated[int | None, typer.Option("--stage", metavar="S", help="Only the task of stage S.")] = None,
    client: Annotated[
        str | None, typer.Option("--client", metavar="ID", help="The pods of this client, by kubectl's config.")
    ] = None,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Follow the run until it ends, with its exit code.")
    ] = False,
    whole: Annotated[bool, typer.Option("--all", help="Include the lines of Kubeflow's own launcher.")] = False,
    *,
    access: Access,
) -> None:
    """Print the logs of a pipeline run's tasks, or of a client's pods.

    Kubeflow Pipelines keeps the logs of finished tasks. Logs of running tasks and of clients' pods come from the
    cluster that KUBECONFIG names.
    """
    if client is None:
        _task_logs(access, run, stage=stage, follow=follow, whole=whole)
    else:
        _client_logs(access, run, client=client, stage=stage, follow=follow)


def _task_logs(access: Access, text: str, *, stage: int | None, follow: bool, whole: bool) -> None:
    """Prints the logs of a run's tasks, in order; drivers' logs only if they failed."""
    write, say, pace = typer.echo, make_screen(True).say, usual_pace()  # standard output is only for logs
    run, _ = open_run(access, text)
    _check_stage(run, stage)
    shown: set[str] = set()
    missed: set[str] = set()

    def write_log(title: str, pod: Pod, *, live: bool) -> None:
        """Prints a log that was not printed yet; follows a live one, whose container may not have started."""
        try:
            if live:
                lines = pod_logs.follow(pod, runs=lambda: _runs(run, pod), pace=pace)
            else:
                lines = iter(pod_logs.read(pod).splitlines())
            first = next(lines, None)
            if first is None:
                return
            shown.add(pod.node)
            write(f"-- {title}")
            lines = itertools.chain([first], lines)
            for line in lines if whole or pod.is_driver else own_lines(lines):
                write(line)
        except UnreachableError:
            raise
        except LwfedError as error:
            if not live:
                shown.add(pod.node)
            if not live or pod.node not in missed:
                missed.add(pod.node)
                say(f"-- {title}: {pod.message}; {error}" if pod.message else f"-- {title}: {error}")

    def write_new() -> tuple[Any, Snapshot]:
        """Prints the logs that are not printed yet; returns what the run does now."""
        found, snapshot = look(run)
        for state in snapshot.tasks:
            for pod in state.pods if stage in (None, state.task.stage) else ():
                of_interest = not pod.is_driver or pod.state == "FAILED"
                if of_interest and pod.state != "PENDING" and pod.node not in shown:
                    title = f"{state.task.title}{', its driver' if pod.is_driver else ''}  ({pod.name})"
                    write_log(title, pod, live=follow and pod.state == "RUNNING" and not is_over(found))
        return found, snapshot

    with closing(PodLogs(run)) as pod_logs:
        if follow:
            with left_running(run.id):
                found, snapshot = with_retries(write_new, pace=pace, say=say)
                while not is_over(found):
                    time.sleep(pace.poll_s)
                    found, snapshot = with_retries(write_new, pace=pace, say=say)
            _raise_outcome(run, found, snapshot)
            return
        write_new()
    if not shown:
        what = f"stage {stage}" if stage is not None else "any task"
        raise NotFoundError(f"there is no log of {what} of {text} yet", remedy="use --follow to wait for it")


def _client_logs(access: Access, text: str, *, client: str, stage: int | None, follow: bool) -> None:
    """Prints the logs of a client's pods; without a server, `text` must be the run's id in lwfed."""
    from lwfed.launch.kubernetes.api import connect, current_namespace  # loads the Kubernetes client

    run: KnownRun | None = None
    found: Any = None
    if access.endpoint or environment.kfp_endpoint():
        run, found = open_run(access, text)
    name = run.title if run else text
    shown: set[str] = set()
    where = (run.namespace if run else access.namespace) or current_namespace()
    with closing(connect(where)) as cluster, left_running(name):
        while True:
            last = run is None or is_over(found) or not follow
            pods = client_pods(cluster, name)
            mine = [pod for pod in pods if pod.client == client and _is_of(pod, stage, run)]
            if not mine and last:
                raise _no_pods(name, client, pods)
            for pod in mine:
                if pod.name in shown or (pod.phase == "Pending" and follow):
                    continue
                shown.add(pod.name)
                typer.echo(f"-- {pod.title}  ({pod.name}, {pod.phase.lower()})")
                if pod.phase == "Pending":
                    continue
                query = {"follow": "true"} if follow and pod.phase == "Running" else {}
                try:
                    for line in cluster.log_lines(pod.name, container=pod.container, **query):
                        typer.echo(line)
                except LwfedError as error:  # the pod is gone, or the stream broke
                    typer.echo(f"-- {error.problem}")
            if last or run is None:
                break
            time.sleep(usual_pace().poll_s)
            found = get_run(run.kfp, run.id)
    if follow and run is not None:
        _raise_outcome(run, *look(run))


def _runs(run: KnownRun, pod: Pod) -> bool:
    """Whether a pod still runs; True if the server does not answer."""
    with suppress(UnreachableError):
        _, snapshot = look(run)
        return any(now.node == pod.node and now.state == "RUNNING" for now in snapshot.pods)
    return True


def _check_stage(run: KnownRun, stage: int | None) -> None:
    stages = sorted(task.stage for task in run.tasks.values() if task.stage is not None)
    if stage is not None and run.tasks and stage not in stages:
        known = ", ".join(map(str, stages)) or "none"
        raise NotFoundError(f"{run.title} has no task for stage {stage}", remedy=f"it has the stages: {known}")


def _is_of(pod: ClientPod, stage: int | None, run: KnownRun | None) -> bool:
    """Whether a pod works for a stage; the stage's key comes from the run in the store."""
    if stage is None:
        return True
    if run is None or run.store is None:
        raise NotFoundError("the stages of the pods are unknown", remedy="omit --stage, or pass --endpoint")
    key = runs.stage_key_of(runs.read_run(open_store(run.store), run.title), stage)
    return key is not None and key[:8] == pod.stage_key


def _no_pods(name: str, client: str, pods: Sequence[ClientPod]) -> NotFoundError:
    if pods:
        known = ", ".join(sorted({pod.client for pod in pods}))
        return NotFoundError(f"{client} has no pod", remedy=f"choose one with pods: {known}")
    lines = f"the stage's log has their lines: lwfed logs {name} --stage S"
    remedy = f"finished pods are deleted after kubernetes.job_ttl_s; {lines}"
    return NotFoundError(f"the clients of {name} have no pods", remedy=remedy)


def _raise_outcome(run: KnownRun, found: Any, snapshot: Snapshot) -> None:
    error = outcome_of(run, found, snapshot).error
    if error is not None:
        raise error
