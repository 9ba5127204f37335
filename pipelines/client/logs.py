"""What `lwfed logs` does: prints the logs of a run's tasks, or those of a client's pods."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any

from rich.console import Console

from lwfed import environment
from lwfed.launch.kubernetes.api import connect as connect_cluster
from lwfed.launch.kubernetes.api import current_namespace
from lwfed.run import runs
from lwfed.store.opening import open_store
from lwfed.types.errors import LwfedError, NotFoundError, UnreachableError
from pipelines.client.cluster import ClientPod, client_pods, pod_log
from pipelines.client.kubeflow import Access, Kfp
from pipelines.client.runs import Facts, get_run, is_over, namespace_of, open_run
from pipelines.follow.follow import PATIENCE_S, POLL_S, GoneOnError, outcome_of
from pipelines.logs.launcher_lines import own_lines
from pipelines.logs.pods import PodLogs
from pipelines.states.reading import read_states
from pipelines.states.records import Pod, Snapshot, TaskState

Write = Callable[[str], Any]


def task_logs(
    access: Access,
    run: str,
    *,
    stage: int | None,
    follow: bool,
    write: Write,
    console: Console,
    whole: bool = False,
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
        whole: Also what Kubeflow's launcher wrote.
        poll_s: Seconds between looks at the run.

    Raises:
        NotFoundError: There is no such run or stage, or nothing of it has begun.
        LwfedError: The server does not answer; with `follow`, the run's own error.
    """
    kfp, found, facts = open_run(access, run)
    _check_stage(facts, stage, run)
    run_id, namespace = str(found.run_id), namespace_of(access, kfp, facts)
    with PodLogs(kfp, run_id, namespace=namespace) as logs:
        reader = _Reader(kfp, run_id, facts, stage=stage, logs=logs, write=write, console=console, whole=whole)
        if follow:
            snapshot = reader.follow(poll_s=poll_s)
            _raise_outcome(kfp, get_run(kfp, run_id), snapshot, namespace=namespace)
            return
        reader.once()
    if not reader.shown:
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
        namespace = namespace_of(access, kfp, facts)
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
                if pod.phase == "Pending":
                    continue
                try:
                    for line in pod_log(cluster, pod, follow=follow and pod.phase == "Running"):
                        write(line)
                except LwfedError as error:  # it has gone in between, or the stream broke
                    write(f"-- {error.problem}")
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
        snapshot = read_states(kfp, str(found.run_id), facts.tasks)
        _raise_outcome(kfp, found, snapshot, namespace=namespace_of(access, kfp, facts))


class _Reader:
    """Writes the log of each pod of a run once."""

    def __init__(
        self,
        kfp: Kfp,
        run_id: str,
        facts: Facts,
        *,
        stage: int | None,
        logs: PodLogs,
        write: Write,
        console: Console,
        whole: bool,
    ) -> None:
        self._kfp, self._run_id, self._facts, self._stage = kfp, run_id, facts, stage
        self._logs, self._write, self._console, self._whole = logs, write, console, whole
        self.shown: set[str] = set()
        self._missed: set[str] = set()

    def once(self) -> None:
        """Writes what is there; a log that cannot be read is named on the console."""
        for state, pod in self._pods(self._look()):
            if pod.state != "PENDING":
                self._tell(state, pod)

    def follow(self, *, poll_s: float) -> Snapshot:
        """Writes what comes, until the run ends; returns what its tasks did last."""
        answered = time.monotonic()
        try:
            while True:
                try:
                    over = is_over(get_run(self._kfp, self._run_id))
                    snapshot = self._look()
                    for state, pod in self._pods(snapshot):
                        if pod.state == "RUNNING" and not over:
                            self._stream(state, pod, poll_s=poll_s)
                        elif pod.state != "PENDING":
                            self._tell(state, pod)
                    answered = time.monotonic()
                    if over:
                        return snapshot
                except UnreachableError as error:
                    if time.monotonic() - answered > PATIENCE_S:
                        raise
                    self._console.print(f"{error.problem}; trying again", highlight=False, markup=False)
                time.sleep(poll_s)
        except KeyboardInterrupt:
            raise GoneOnError(f"no longer following; the run {self._run_id} goes on") from None

    def _look(self) -> Snapshot:
        return read_states(self._kfp, self._run_id, self._facts.tasks)

    def _pods(self, snapshot: Snapshot) -> list[tuple[TaskState, Pod]]:
        """Returns the pods whose logs are wanted: those of tasks, and drivers only where they failed."""
        states = [state for state in snapshot.tasks if self._stage is None or state.task.stage == self._stage]
        return [(state, pod) for state in states for pod in state.pods if not pod.is_driver or pod.state == "FAILED"]

    def _tell(self, state: TaskState, pod: Pod) -> None:
        if pod.node in self.shown:
            return
        try:
            log = self._logs.read(pod)
        except UnreachableError:
            raise
        except LwfedError as error:
            said = f"{pod.message}; " if pod.message else ""
            self._note(state, pod, f"{said}{error}")
            return
        self._open(state, pod)
        for line in self._chosen(iter(log.splitlines()), pod):
            self._write(line)

    def _stream(self, state: TaskState, pod: Pod, *, poll_s: float) -> None:
        """Writes a running pod's lines as they come; does nothing while its container is still on its way."""
        if pod.node in self.shown:
            return
        lines = self._logs.follow(pod, runs=lambda: self._runs(pod), poll_s=poll_s)
        try:
            first = next(lines, None)
            if first is None:
                return
            self._open(state, pod)
            for line in self._chosen(itertools.chain([first], lines), pod):
                self._write(line)
        except UnreachableError:
            raise
        except LwfedError as error:
            if pod.node not in self._missed:
                self._missed.add(pod.node)
                self._console.print(f"-- {_title(state, pod)}: {error}", highlight=False, markup=False, soft_wrap=True)

    def _runs(self, pod: Pod) -> bool:
        """Whether a pod still runs; True where the server does not answer: it has not said otherwise."""
        with suppress(UnreachableError):
            return self._is_running(pod)
        return True

    def _is_running(self, pod: Pod) -> bool:
        return any(now.node == pod.node and now.state == "RUNNING" for now in self._look().pods)

    def _chosen(self, lines: Iterator[str], pod: Pod) -> Iterator[str]:
        return lines if self._whole or pod.is_driver else own_lines(lines)

    def _open(self, state: TaskState, pod: Pod) -> None:
        self.shown.add(pod.node)
        self._write(f"-- {_title(state, pod)}")

    def _note(self, state: TaskState, pod: Pod, line: str) -> None:
        self.shown.add(pod.node)
        self._console.print(f"-- {_title(state, pod)}: {line}", highlight=False, markup=False, soft_wrap=True)


def _title(state: TaskState, pod: Pod) -> str:
    return state.task.title + (", its driver" if pod.is_driver else "") + f"  ({pod.name})"


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


def _raise_outcome(kfp: Kfp, found: Any, snapshot: Snapshot, *, namespace: str) -> None:
    error = outcome_of(kfp, found, snapshot, namespace=namespace).error
    if error is not None:
        raise error
