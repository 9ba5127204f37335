"""Records of a run's tasks and their pods."""

from __future__ import annotations

from dataclasses import dataclass
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
        node: Its id in Kubeflow Pipelines, the key of its log.
        name: Its name in the cluster.
        state: PENDING, RUNNING, SUCCEEDED or FAILED.
        is_driver: Whether it is the task's driver, which only prepares it.
        started: Time of its start.
        ended: Time of its end; None until then.
        message: The cluster's message about it; may be empty.
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
        state: PENDING, RUNNING, SUCCEEDED, FAILED or SKIPPED; CACHED if its result came from the cache.
        started: Time of its start.
        ended: Time of its end; None until then.
        pods: Its pods, oldest first: the driver's, then its own.
    """

    task: Task
    state: str
    started: datetime | None = None
    ended: datetime | None = None
    pods: tuple[Pod, ...] = ()

    def seconds(self, now: datetime) -> float:
        """Returns its duration so far in seconds."""
        return max(0.0, ((self.ended or now) - self.started).total_seconds()) if self.started else 0.0


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The states of all tasks of a run at one moment.

    Attributes:
        tasks: The tasks that have begun, in the pipeline's order.
        others: Pods of no task, such as the driver of the whole pipeline.
        message: The cluster's message about the whole run; may be empty.
    """

    tasks: tuple[TaskState, ...] = ()
    others: tuple[Pod, ...] = ()
    message: str = ""

    @property
    def pods(self) -> tuple[Pod, ...]:
        """All pods."""
        return tuple(pod for state in self.tasks for pod in state.pods) + self.others


def failed_pod(snapshot: Snapshot) -> tuple[TaskState | None, Pod] | None:
    """Finds the pod whose failure ended a run.

    Returns:
        The last pod of the task that failed first, with that task; the exit task counts only if no other failed. A
        failed pod of no task comes without a task. None if no pod failed.
    """
    found: list[tuple[TaskState | None, Pod]] = []
    for state in snapshot.tasks:
        pods = [pod for pod in state.pods if pod.state == "FAILED"]
        if state.state == "FAILED" and pods:
            found.append((state, pods[-1]))
    found = [item for item in found if item[0] and item[0].task.name != EXIT_TASK] or found
    found = found or [(None, pod) for pod in snapshot.others if pod.state == "FAILED"]
    return min(found, key=lambda item: item[1].ended or NEVER, default=None)
