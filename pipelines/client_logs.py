"""What `lwfed logs` does: the logs of a run's tasks by Kubeflow Pipelines, those of a client's pods by the cluster."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from rich.console import Console

from lwfed import environment
from lwfed.launch.kubernetes_api import connect as connect_cluster
from lwfed.launch.kubernetes_api import current_namespace
from lwfed.steps import runs
from lwfed.store.opening import open_store
from lwfed.types.errors import LwfedError, NotFoundError, UnreachableError
from pipelines.client import Access, Kfp
from pipelines.client_cluster import ClientPod, client_pods, pod_log
from pipelines.client_runs import Facts, follow_log, get_run, is_over, open_run, read_log
from pipelines.follow import PATIENCE_S, POLL_S, GoneOnError, outcome_of
from pipelines.follow_tasks import Pod, TaskState, task_states

Write = Callable[[str], Any]


def task_logs(
    access: Access,
    run: str,
    *,
    stage: int | None,
    follow: bool,
    write: Write,
    console: Console,
    poll_s: float = POLL_S,
) -> None:
    """Writes the logs of a run's tasks, in their order.

    Args:
        access: The server.
        run: Any name of the run.
        stage: Only that stage's task; None: all.
        follow: Go on until the run ends, and end as it does.
        write: Takes a line of a log.
        console: For what is not of a log.
        poll_s: Seconds between looks at the run.

    Raises:
        NotFoundError: There is no such run or stage, or nothing of it has begun.
        LwfedError: The server does not answer; with `follow`, the run's own error.
    """
    kfp, found, facts = open_run(access, run)
    _check_stage(facts, stage, run)
    told: set[str] = set()
    if follow:
        _followed(kfp, found, facts, stage=stage, told=told, write=write, console=console, poll_s=poll_s)
        return
    for state, pod in _pods(found, facts, stage):
        _tell(kfp, found, state, pod, told=told, write=write, console=console)
    if not told:
        what = f"stage {stage}" if stage is not None else "any task"
        raise NotFoundError(f"there is no log of {what} of {run} yet", remedy="--follow waits for it")


def client_logs(
    access: Access,
    run: str,
    *,
    client: str,
    stage: int | None,
    follow: bool,
    write: Write,
    poll_s: float = POLL_S,
) -> None:
    """Writes the logs of a client's pods, through the cluster that KUBECONFIG names.

    Args:
        access: The server; where none is named, `run` is lwfed's own id of the run.
        run: Any name of the run.
        client: The client, or `server` for the pods that aggregate and evaluate.
        stage: Only pods of that stage; None: all.
        follow: Go on until the run ends, and end as it does.
        write: Takes a line of a log.
        poll_s: Seconds between looks for new pods.

    Raises:
        NotFoundError: There is no such run or stage, or no pod of that client.
        UnreachableError: The cluster, the store or the server does not answer.
    """
    kfp: Kfp | None = None
    found: Any = None
    facts: Facts | None = None
    name, namespace = run, access.namespace
    if access.endpoint or environment.kfp_endpoint():
        kfp, found, facts = open_run(access, run)
        name = facts.name or run
        namespace = namespace or kfp.namespace or (facts.spec.kubernetes.namespace if facts.spec else None)
    cluster = connect_cluster(namespace or current_namespace())
    try:
        told: set[str] = set()
        while True:
            over = kfp is None or is_over(found)
            pods = client_pods(cluster, name)
            mine = [pod for pod in pods if pod.client == client and _is_of(pod, name, stage, facts)]
            if not mine and (over or not follow):
                raise _no_pods(name, client, pods)
            for pod in mine:
                if pod.name in told or (pod.phase == "Pending" and follow):
                    continue
                told.add(pod.name)
                write(f"-- {pod.title}  ({pod.name}, {pod.phase.lower()})")
                for line in pod_log(cluster, pod, follow=follow and pod.phase == "Running"):
                    write(line)
            if not follow or over:
                break
            time.sleep(poll_s)
            assert kfp is not None
            found = get_run(kfp, str(found.run_id))
    except KeyboardInterrupt:
        raise GoneOnError(f"no longer following {name}; it goes on") from None
    finally:
        cluster.close()
    if follow and kfp is not None and facts is not None:
        _raise_outcome(kfp, found, facts)


def _followed(
    kfp: Kfp,
    found: Any,
    facts: Facts,
    *,
    stage: int | None,
    told: set[str],
    write: Write,
    console: Console,
    poll_s: float,
) -> None:
    answered = time.monotonic()
    try:
        while True:
            over = is_over(found)
            for state, pod in _pods(found, facts, stage):
                try:
                    _tell(
                        kfp, found, state, pod, told=told, write=write, console=console, live_s=None if over else poll_s
                    )
                except UnreachableError as error:
                    if time.monotonic() - answered > PATIENCE_S:
                        raise
                    console.print(f"{error.problem}; trying again", highlight=False, markup=False)
                    break
            else:
                answered = time.monotonic()
                if over:
                    break
            time.sleep(poll_s)
            found = _again(kfp, found)
    except KeyboardInterrupt:
        raise GoneOnError(f"no longer following; the run {found.run_id} goes on") from None
    _raise_outcome(kfp, found, facts)


def _again(kfp: Kfp, found: Any) -> Any:
    try:
        return get_run(kfp, str(found.run_id))
    except UnreachableError:
        return found  # its next log will not be there either, and is asked for until patience ends


def _tell(
    kfp: Kfp,
    found: Any,
    state: TaskState,
    pod: Pod,
    *,
    told: set[str],
    write: Write,
    console: Console,
    live_s: float | None = None,
) -> None:
    """Writes the log of a pod once; of one that runs, while it does."""
    if pod.name in told or pod.state in ("PENDING", "SKIPPED"):
        return
    running = live_s is not None and pod.state == "RUNNING"
    head = f"-- {state.task.title}" + (", its driver" if pod.is_driver else "") + f"  ({pod.name})"
    try:
        if running:
            lines = follow_log(kfp, found, pod.name, poll_s=live_s or POLL_S)
            first = next(lines, None)
            if first is None:
                return
            write(head)
            told.add(pod.name)
            write(first)
            for line in lines:
                write(line)
            return
        log = read_log(kfp, found, pod.name)
    except UnreachableError:
        raise
    except LwfedError as error:
        if running:
            return  # its container is still on its way
        told.add(pod.name)
        console.print(f"{head}: {error}", highlight=False, markup=False, soft_wrap=True)
        return
    told.add(pod.name)
    write(head)
    for line in log.splitlines():
        write(line)


def _pods(found: Any, facts: Facts, stage: int | None) -> list[tuple[TaskState, Pod]]:
    """Gives the pods whose logs are wanted: those of tasks, and drivers only where they failed."""
    states = [state for state in task_states(found, facts.tasks) if stage is None or state.task.stage == stage]
    return [(state, pod) for state in states for pod in state.pods if not pod.is_driver or pod.state == "FAILED"]


def _check_stage(facts: Facts, stage: int | None, run: str) -> None:
    stages = [task.stage for task in facts.tasks.values() if task.stage is not None]
    if stage is not None and facts.tasks and stage not in stages:
        known = ", ".join(map(str, sorted(stages))) or "none"
        raise NotFoundError(f"{run} has no task for stage {stage}", remedy=f"its stages: {known}")


def _is_of(pod: ClientPod, name: str, stage: int | None, facts: Facts | None) -> bool:
    """Whether a pod works for a stage; the run in the store says which key that has."""
    if stage is None:
        return True
    if facts is None or facts.store is None:
        raise NotFoundError("what stage a pod belongs to is not known", remedy="leave --stage out, or name --endpoint")
    key = runs.stage_key_of(runs.read_run(open_store(facts.store), name), stage)
    return key is not None and key[:8] == pod.stage_key


def _no_pods(name: str, client: str, pods: Sequence[ClientPod]) -> NotFoundError:
    if pods:
        known = ", ".join(sorted({pod.client for pod in pods}))
        return NotFoundError(f"no pod of {client} is there", remedy=f"there are pods of {known}")
    return NotFoundError(
        f"no pods of the clients of {name} are there",
        remedy="finished ones are removed after kubernetes.job_ttl_s; their lines are in the stage's log: lwfed logs "
        f"{name} --stage S",
    )


def _raise_outcome(kfp: Kfp, found: Any, facts: Facts) -> None:
    error = outcome_of(kfp, found, facts).error
    if error is not None:
        raise error
