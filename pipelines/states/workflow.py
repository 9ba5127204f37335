"""Reads the states of a run's tasks from the nodes of its Argo workflow, which Kubeflow Pipelines' v1beta1 API returns.

This is the only module that knows the format of 2.17; according to its sources, 2.18 has the same. The v2beta1 API has
no names of pods, and reports cached tasks as skipped. A node's name is its path in the workflow:
`wf(0).root(0).exit-handler-1(0).train-stage-1(0).executor(1)` is the second try of stage 1's own pod; the node of its
driver is next to the task, as `train-stage-1-driver`. Numbers in brackets are tries; only installations with retries
have them.
"""

from __future__ import annotations

import base64
import gzip
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from lwfed.types.errors import LwfedError, NotFoundError
from pipelines.client.runs import KnownRun, get_run
from pipelines.states.records import NEVER, Pod, Snapshot, TaskState
from pipelines.tasks import Task

NOT_BEGUN = (None, "", "PENDING", "CANCELING")
"""States in which a run may have no tasks yet; 2.17.0 returns none for a moment after a run's creation."""
TRY = re.compile(r"\(\d+\)$")
EXECUTOR = "executor"
DRIVER = "-driver"
POD, SKIPPED_NODE = "Pod", "Skipped"
FORMAT = "workflows.argoproj.io/pod-name-format"
LONGEST_PREFIX = 242
"""Longest part of a pod's name before its number, in characters; Argo truncates longer ones."""
STATES: Mapping[str, str] = {
    "Pending": "PENDING",
    "Running": "RUNNING",
    "Succeeded": "SUCCEEDED",
    "Skipped": "SKIPPED",
    "Omitted": "SKIPPED",
    "Failed": "FAILED",
    "Error": "FAILED",
}


@dataclass(frozen=True, slots=True)
class Node:
    """A node of a workflow.

    Attributes:
        path: The parts of its name, without the numbers of tries.
        kind: Its type in Argo: Pod, Retry, DAG, Skipped ...
        is_try: Whether it is a try of another node.
        pod: Its state and dates as a pod's; the pod itself if it is one.
    """

    path: tuple[str, ...]
    kind: str
    is_try: bool
    pod: Pod


def look(run: KnownRun) -> tuple[Any, Snapshot]:
    """Reads a run now: the API's record of it, and the states of its tasks. Raises LwfedError as `read_states` does."""
    found = get_run(run.kfp, run.id)
    return found, read_states(run, found)


def read_states(run: KnownRun, found: Any) -> Snapshot:
    """Reads the states of a run's tasks.

    Args:
        run: The run.
        found: The API's record of it, read before.

    Returns:
        The snapshot; empty for a run that was just created.

    Raises:
        LwfedError: The server refuses or does not answer; or the run has begun, and the answer has no workflow.
    """
    path = f"/apis/v1beta1/runs/{run.id}"
    try:
        answer = json.loads(run.kfp.read(path, about=f"the tasks of the run {run.id}"))
    except NotFoundError:
        problem = "not found"
    except ValueError:
        problem = "not JSON"
    else:
        if (snapshot := parse(answer, run.tasks)) is not None:
            return snapshot
        problem = "JSON without a workflow"
    if found.state in NOT_BEGUN:
        return Snapshot()
    raise LwfedError(
        f"the run {run.id} is {found.state}, but {run.kfp.endpoint} reports its tasks in a format that lwfed does not "
        f"know ({path}: {problem})",
        remedy=f"use Kubeflow Pipelines 2.17 or a newer lwfed; the run itself is not affected: {run.page}",
    )


def parse(answer: Any, tasks: Mapping[str, Task]) -> Snapshot | None:
    """Parses the states of a run's tasks.

    Args:
        answer: The API's answer.
        tasks: The pipeline's tasks by name.

    Returns:
        The snapshot; None if the answer has no workflow.
    """
    runtime = answer.get("pipeline_runtime") if isinstance(answer, dict) else None
    text = (runtime or {}).get("workflow_manifest")
    workflow = json.loads(text) if text else {}
    if not isinstance(workflow, dict) or "metadata" not in workflow:
        return None
    status = workflow.get("status") or {}
    nodes = [_node(workflow, values) for values in _nodes(status).values()]
    states = [state for task in tasks.values() if (state := _state(task, nodes)) is not None]
    mine = {pod.node for state in states for pod in state.pods}
    others = [node.pod for node in nodes if node.kind == POD and node.pod.node not in mine]
    return Snapshot(tuple(states), _oldest_first(others), str(status.get("message") or ""))


def _nodes(status: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns id -> node of a workflow; Argo compresses the nodes of a workflow above 1 MiB."""
    packed = status.get("compressedNodes")
    nodes = json.loads(gzip.decompress(base64.b64decode(packed))) if packed else status.get("nodes")
    return dict(nodes or {})


def _node(workflow: Mapping[str, Any], values: Mapping[str, Any]) -> Node:
    name = str(values["name"])
    path = tuple(TRY.sub("", part) for part in name.split("."))
    pod = Pod(
        node=str(values["id"]),
        name=_pod_name(workflow, values),
        state=STATES.get(str(values.get("phase") or "Pending"), "PENDING"),
        is_driver=path[-1].endswith(DRIVER),
        started=_date_of(values.get("startedAt")),
        ended=_date_of(values.get("finishedAt")),
        message=str(values.get("message") or ""),
    )
    return Node(path, str(values.get("type")), TRY.search(name) is not None, pod)


def _state(task: Task, nodes: Iterable[Node]) -> TaskState | None:
    """Parses one task; None if it has not begun."""
    own = [node for node in nodes if node.path[-1] == task.name and node.kind != POD]
    drivers = [node for node in nodes if node.path[-1] == task.name + DRIVER]
    executors = [node for node in nodes if node.path[-2:] == (task.name, EXECUTOR)]
    executors += [node for node in nodes if node.path[-1] == task.name and node.kind == POD]  # an importer's
    whole = [*own, *executors]
    if not whole and not drivers:
        return None
    first = _latest([node for node in own if not node.is_try] or whole)
    again: list[Node] = []
    if first is not None:
        state, since = first.pod.state, first.pod.started
        again = [node for node in executors if not (node.pod.started and since) or node.pod.started >= since]
    else:
        failed = any(node.pod.state == "FAILED" for node in drivers if not node.is_try)
        state = "FAILED" if failed else "PENDING"
    if state == "SKIPPED" and any(node.pod.state == "FAILED" for node in drivers):
        state = "FAILED"  # its driver failed, so it has no pod of its own
    if state == "SUCCEEDED" and any(node.kind == SKIPPED_NODE for node in again):
        state = "CACHED"
    pods = _oldest_first(node.pod for node in [*drivers, *executors] if node.kind == POD)
    last = next((pod for pod in reversed(pods) if not pod.is_driver), None)
    if state == "RUNNING" and (last is None or last.state == "PENDING"):
        state = "PENDING"  # Argo reports a task as running as soon as it requests the pod
    dates = [node.pod.started for node in [*whole, *drivers] if node.pod.started]
    ends = [node.pod.ended for node in (whole or drivers) if node.pod.ended]
    return TaskState(
        task=task,
        state=state,
        started=min(dates, default=None),
        ended=max(ends, default=None) if state not in ("PENDING", "RUNNING") else None,
        pods=pods,
    )


def _latest(nodes: Iterable[Node]) -> Node | None:
    """Returns the node that began last; a task has several if Argo retries its whole group."""
    never = datetime.min.replace(tzinfo=UTC)
    return max(nodes, key=lambda node: node.pod.started or never, default=None)


def _pod_name(workflow: Mapping[str, Any], values: Mapping[str, Any]) -> str:
    """Returns a pod's name in Argo: the node's id, including the template's name unless the format is v1."""
    metadata, node = workflow["metadata"], str(values["id"])
    if (metadata.get("annotations") or {}).get(FORMAT) == "v1" or not values.get("templateName"):
        return node
    prefix = f"{metadata['name']}-{values['templateName']}"[:LONGEST_PREFIX]
    return f"{prefix}-{node.rpartition('-')[2]}"


def _oldest_first(pods: Iterable[Pod]) -> tuple[Pod, ...]:
    """Returns a task's pods sorted: the driver's first, then by start."""
    return tuple(sorted(pods, key=lambda pod: (not pod.is_driver, pod.started or NEVER, pod.name)))


def _date_of(text: str | None) -> datetime | None:
    return datetime.fromisoformat(text) if text else None
