"""What a run's nodes say of its tasks: a pure view.

Kubeflow Pipelines tell of Argo's nodes, several for each task: its driver, a wrapper for tries, `executor` and that
one's tries. Which `executor` belongs to which task only the tree of nodes says.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

EPOCH_YEAR = 1970
"""The year of a date that is not known yet."""
TRY = re.compile(r"\(\d+\)$")
EXECUTOR = "executor"
DRIVER = "-driver"
ENDED = ("SUCCEEDED", "FAILED", "SKIPPED", "CANCELED")
EXIT_TASK = "cleanup"


@dataclass(frozen=True, slots=True)
class Task:
    """A task of a pipeline.

    Attributes:
        name: Its name in the compiled pipeline.
        title: Its name for people.
        stage: The stage it trains, if it trains one.
    """

    name: str
    title: str
    stage: int | None = None


@dataclass(frozen=True, slots=True)
class Pod:
    """A pod of a task."""

    name: str
    state: str
    is_driver: bool
    started: datetime | None = None
    ended: datetime | None = None


@dataclass(frozen=True, slots=True)
class TaskState:
    """A task of a run that has begun.

    Attributes:
        task: The task.
        state: PENDING, RUNNING, SUCCEEDED, FAILED or SKIPPED; CACHED where its result was taken from the cache.
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
        """How long it takes, or took."""
        return max(0.0, ((self.ended or now) - self.started).total_seconds()) if self.started else 0.0


def task_names(pipeline: Mapping[str, Any]) -> dict[str, Task]:
    """Reads the tasks of a compiled pipeline, in its order; groups of tasks are looked into."""
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


def node_id(pod: str, run: Any) -> str:
    """Gives the id of a pod's node: the workflow's name and the pod's last part, without the template's name."""
    workflow = _workflow(_nodes(run))
    if workflow is None or pod == workflow or not pod.startswith(f"{workflow}-"):
        return pod
    return f"{workflow}-{pod.rpartition('-')[2]}"


def node_state(run: Any, pod: str) -> str | None:
    """Gives the state of a pod's node; None where there is none."""
    return next((str(node.state) for node in _nodes(run) if _pod_name(node) == pod), None)


def task_states(run: Any, tasks: Mapping[str, Task]) -> list[TaskState]:
    """Gives the tasks of a run that have begun, in their order.

    Args:
        run: As the API gives it.
        tasks: What its pipeline says; of a pipeline that says nothing, nodes are told as they are.
    """
    nodes = _nodes(run)
    ids = {node_id(_pod_name(node), run): node for node in nodes}
    root = _workflow(nodes)
    if not tasks:
        tasks = {name: Task(name, name) for name in _guessed(nodes, root)}
    states = []
    for name, task in tasks.items():
        own = [node for node in nodes if node.display_name == name]
        drivers = [node for node in nodes if TRY.sub("", node.display_name or "") == name + DRIVER]
        if not own and not drivers:
            continue
        executors = _executors(name, ids, nodes)
        states.append(_state(task, own=own, drivers=drivers, executors=executors))
    return states


def failed_task(states: Iterable[TaskState]) -> tuple[TaskState, Pod] | None:
    """Gives the task that failed first, and its pod that did; None where no pod failed."""
    found = [
        (pod.is_driver, pod.ended or datetime.max.replace(tzinfo=UTC), number, state, pod)
        for number, state in enumerate(states)
        for pod in state.pods
        if pod.state == "FAILED" and state.state == "FAILED"
    ]
    if not found:
        return None
    others = [item for item in found if not item[3].task.name.startswith(EXIT_TASK)]
    *_, state, pod = min(others or found, key=lambda item: item[:3])
    last = [item for item in state.pods if item.state == "FAILED" and item.is_driver == pod.is_driver]
    return state, last[-1]


def _state(task: Task, *, own: list[Any], drivers: list[Any], executors: list[Any]) -> TaskState:
    pods = sorted(
        (
            Pod(_pod_name(node), node.state or "PENDING", is_driver, _date(node.start_time), _date(node.end_time))
            for is_driver, group in ((True, drivers), (False, executors))
            for node in _leaves(group)
        ),
        key=lambda pod: (not pod.is_driver, pod.started or datetime.max.replace(tzinfo=UTC), pod.name),
    )
    told = own[-1].state if own else None
    if told is None:
        told = "FAILED" if any(node.state == "FAILED" for node in drivers) else "PENDING"
    cached = told == "SUCCEEDED" and executors and all(node.state == "SKIPPED" for node in executors)
    dates = [*own, *drivers]
    started = [date for date in (_date(node.start_time) for node in dates) if date]
    ended = [date for date in (_date(node.end_time) for node in (own or drivers)) if date]
    return TaskState(
        task=task,
        state="CACHED" if cached else told,
        started=min(started, default=None),
        ended=max(ended, default=None) if told in ENDED else None,
        pods=tuple(pods),
    )


def _executors(name: str, ids: Mapping[str, Any], nodes: Iterable[Any]) -> list[Any]:
    """Finds a task's pods: the nodes below it, up to those of the next task, which hang below it too."""
    open_nodes = [node for node in nodes if TRY.sub("", node.display_name or "") == name]
    found: dict[str, Any] = {}
    while open_nodes:
        for child in open_nodes.pop().child_tasks or ():
            node = ids.get(child.pod_name or child.task_id or "")
            if node is None or _pod_name(node) in found:
                continue
            base = TRY.sub("", node.display_name or "")
            if base == EXECUTOR:
                found[_pod_name(node)] = node
            if base in (EXECUTOR, name):
                open_nodes.append(node)
    return list(found.values())


def _leaves(nodes: list[Any]) -> list[Any]:
    """Leaves wrappers of tries out, where their tries are there."""
    tries = [node for node in nodes if TRY.search(node.display_name or "")]
    return tries or nodes


def _guessed(nodes: list[Any], root: str | None) -> list[str]:
    names = dict.fromkeys(TRY.sub("", node.display_name or "") for node in nodes)
    return [name for name in names if name and name not in (EXECUTOR, root) and not name.endswith(DRIVER)]


def _nodes(run: Any) -> list[Any]:
    details = run.run_details.task_details if run.run_details else None
    return [node for node in details or () if _pod_name(node)]


def _workflow(nodes: Iterable[Any]) -> str | None:
    """Finds the workflow's name: the root node and its pod are named alike."""
    return next((_pod_name(node) for node in nodes if node.display_name == _pod_name(node)), None)


def _pod_name(node: Any) -> str:
    return str(node.pod_name or node.task_id or "")


def _date(value: datetime | None) -> datetime | None:
    return value if value is not None and value.year > EPOCH_YEAR else None


def _in_order(tasks: Mapping[str, Any]) -> list[str]:
    """Sorts tasks so that each comes after those it depends on; else by name, numbers as numbers."""
    left = sorted(tasks, key=lambda name: [int(part) if part.isdigit() else 0 for part in re.split(r"(\d+)", name)])
    done: list[str] = []
    while left:
        ready = [name for name in left if set(tasks[name].get("dependentTasks") or ()) <= set(done)] or left[:1]
        done += ready
        left = [name for name in left if name not in ready]
    return done
