"""Tasks of a run and their pods, whatever version of Kubeflow Pipelines they were read from: pure records."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

ENDED = frozenset({"SUCCEEDED", "CACHED", "FAILED", "SKIPPED"})
"""States that a task does not leave, unless its run is retried."""
EXIT_TASK = "cleanup"


@dataclass(frozen=True, slots=True)
class Task:
    """A task of a pipeline.

    Attributes:
        name: Its name in the compiled pipeline.
        title: Its name for people.
        stage: The stage it trains; None where it trains none.
    """

    name: str
    title: str
    stage: int | None = None


@dataclass(frozen=True, slots=True)
class Pod:
    """A pod of a task.

    Attributes:
        node: Its id, by which Kubeflow Pipelines keep its log.
        name: Its name in the cluster.
        state: PENDING, RUNNING, SUCCEEDED or FAILED.
        is_driver: Whether it only prepares the task.
        started: When.
        ended: When; None while it goes on.
        message: What the cluster says of it; empty where it says nothing.
    """

    node: str
    name: str
    state: str
    is_driver: bool
    started: datetime | None = None
    ended: datetime | None = None
    message: str = ""


@dataclass(frozen=True, slots=True)
class TaskState:
    """A task of a run that has begun.

    Attributes:
        task: The task.
        state: PENDING, RUNNING, SUCCEEDED, FAILED or SKIPPED; CACHED where its result came from the cache.
        started: When.
        ended: When; None while it goes on.
        pods: Its pods, oldest first: those of its driver, then its own.
    """

    task: Task
    state: str
    started: datetime | None = None
    ended: datetime | None = None
    pods: tuple[Pod, ...] = field(default=())

    def seconds(self, now: datetime) -> float:
        """Returns how long it has taken so far, or took, in seconds."""
        return max(0.0, ((self.ended or now) - self.started).total_seconds()) if self.started else 0.0


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What all tasks of a run do at one moment.

    Attributes:
        tasks: The tasks that have begun, in the pipeline's order.
        others: Pods that belong to none of them, such as the driver of the whole pipeline.
        message: What the cluster says of the whole run; empty where it says nothing.
    """

    tasks: tuple[TaskState, ...] = ()
    others: tuple[Pod, ...] = ()
    message: str = ""

    @property
    def pods(self) -> tuple[Pod, ...]:
        """All pods."""
        return tuple(pod for state in self.tasks for pod in state.pods) + self.others


def task_names(pipeline: Mapping[str, Any]) -> dict[str, Task]:
    """Reads the tasks of a compiled pipeline, in its order; groups of tasks are looked into.

    Args:
        pipeline: The pipeline's spec, as `kfp.compiler` writes it.

    Returns:
        Name -> task.
    """
    found: dict[str, Task] = {}
    components = pipeline.get("components") or {}

    def look(dag: Mapping[str, Any]) -> None:
        tasks = (dag.get("dag") or {}).get("tasks") or {}
        for name in _in_order(tasks):
            inner = components.get((tasks[name].get("componentRef") or {}).get("name")) or {}
            if "dag" in inner:
                look(inner)
                continue
            title = (tasks[name].get("taskInfo") or {}).get("name") or name
            parameters = (tasks[name].get("inputs") or {}).get("parameters") or {}
            stage = ((parameters.get("stage") or {}).get("runtimeValue") or {}).get("constant")
            trains = "plan_digest" in parameters or "input_digest" in parameters
            found[name] = Task(name, title, int(stage) if trains and stage is not None else None)

    look(pipeline.get("root") or {})
    return found


def failed_pod(snapshot: Snapshot) -> tuple[TaskState | None, Pod] | None:
    """Finds the pod that ended a run.

    Returns:
        The last pod of the task that failed first, with that task; the exit task counts only where no other failed.
        Without a task: a pod that belongs to none. None where no pod failed.
    """
    failed = [state for state in snapshot.tasks if state.state == "FAILED" and _failures(state)]
    failed = [state for state in failed if state.task.name != EXIT_TASK] or failed
    if failed:
        first = min(failed, key=lambda state: _when(_failures(state)[-1]))
        return first, _failures(first)[-1]
    others = [pod for pod in snapshot.others if pod.state == "FAILED"]
    return (None, min(others, key=_when)) if others else None


def _failures(state: TaskState) -> list[Pod]:
    return [pod for pod in state.pods if pod.state == "FAILED"]


def _when(pod: Pod) -> datetime:
    return pod.ended or datetime.max.replace(tzinfo=UTC)


def oldest_first(pods: Iterable[Pod]) -> tuple[Pod, ...]:
    """Sorts a task's pods: those of its driver first, then by their start."""
    never = datetime.max.replace(tzinfo=UTC)
    return tuple(sorted(pods, key=lambda pod: (not pod.is_driver, pod.started or never, pod.name)))


def _in_order(tasks: Mapping[str, Any]) -> list[str]:
    """Sorts tasks so that each comes after those it depends on; else by name, numbers as numbers."""
    left = sorted(tasks, key=lambda name: [int(part) if part.isdigit() else 0 for part in re.split(r"(\d+)", name)])
    done: list[str] = []
    while left:
        ready = [name for name in left if set(tasks[name].get("dependentTasks") or ()) <= set(done)] or left[:1]
        done += ready
        left = [name for name in left if name not in ready]
    return done
