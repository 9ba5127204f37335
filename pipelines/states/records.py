"""Tasks of a run and their pods, whatever version of Kubeflow Pipelines they were read from: pure records."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime

from pipelines.tasks import Task

ENDED = frozenset({"SUCCEEDED", "CACHED", "FAILED", "SKIPPED"})
"""States that a task does not leave, unless its run is retried."""
EXIT_TASK = "cleanup"
NEVER = datetime.max.replace(tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Pod:
    """A pod of a task.

    Attributes:
        node: Its id, by which Kubeflow Pipelines keep its log.
        name: Its name in the cluster.
        state: PENDING, RUNNING, SUCCEEDED or FAILED.
        is_driver: Whether it only prepares the task.
        started: When.
        ended: When; None until then.
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
        ended: When; None until then.
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


def failed_pod(snapshot: Snapshot) -> tuple[TaskState | None, Pod] | None:
    """Finds the pod that ended a run.

    Returns:
        The last pod of the task that failed first, with that task; the exit task counts only where no other failed.
        Without a task: a pod that belongs to none. None where no pod failed.
    """
    found: list[tuple[TaskState | None, Pod]] = []
    for state in snapshot.tasks:
        pods = [pod for pod in state.pods if pod.state == "FAILED"]
        if state.state == "FAILED" and pods:
            found.append((state, pods[-1]))
    found = [item for item in found if item[0] and item[0].task.name != EXIT_TASK] or found
    found = found or [(None, pod) for pod in snapshot.others if pod.state == "FAILED"]
    return min(found, key=lambda item: item[1].ended or NEVER, default=None)


def oldest_first(pods: Iterable[Pod]) -> tuple[Pod, ...]:
    """Sorts a task's pods: those of its driver first, then by their start."""
    return tuple(sorted(pods, key=lambda pod: (not pod.is_driver, pod.started or NEVER, pod.name)))


def date_of(text: str | None) -> datetime | None:
    """Reads a date of the API; None where there is none."""
    return datetime.fromisoformat(text) if text else None
