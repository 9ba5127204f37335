"""Parses tasks of Kubeflow Pipelines without ML Metadata: records that the v2beta1 API returns with a run.

Based on the API's definition on that branch of its sources (`PipelineTask` in backend/api/v2beta1/run.proto), and not
seen on a server.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from pipelines.states.records import Pod, Snapshot, TaskState, date_of, oldest_first
from pipelines.tasks import Task

WITH_POD = ("RUNTIME", "IMPORTER")
"""Types of tasks that have a name in the pipeline; all other types are groups of these."""


def parse(answer: Mapping[str, Any], tasks: Mapping[str, Task]) -> Snapshot | None:
    """Parses the states of a run's tasks; see `workflow.parse`. Not seen on a server."""
    records = answer.get("tasks")
    if not isinstance(records, list):
        return None
    named = [record for record in records if record.get("type") in WITH_POD]
    groups = [record for record in records if record.get("type") not in WITH_POD]
    states = [_state(task, [record for record in named if record.get("name") == task.name]) for task in tasks.values()]
    failed = [message for record in groups if (message := _message(record)) and record.get("state") == "FAILED"]
    others = oldest_first(pod for record in groups for pod in _pods(record))
    return Snapshot(tuple(state for state in states if state is not None), others, next(iter(failed), ""))


def _state(task: Task, records: Iterable[Mapping[str, Any]]) -> TaskState | None:
    """Parses one task from its records; the last one counts, since a retry may leave older ones."""
    found = sorted(records, key=lambda record: str(record.get("create_time") or ""))
    if not found:
        return None
    last = found[-1]
    state = str(last.get("state") or "PENDING")
    return TaskState(
        task=task,
        state=state if state != "RUNTIME_STATE_UNSPECIFIED" else "PENDING",
        started=date_of(found[0].get("create_time")),
        ended=date_of(last.get("end_time")) if state not in ("PENDING", "RUNNING") else None,
        pods=oldest_first(pod for record in found for pod in _pods(record)),
    )


def _pods(record: Mapping[str, Any]) -> list[Pod]:
    """Parses a record's pods. They have no state of their own: a driver counts as succeeded if an executor exists."""
    state = str(record.get("state") or "PENDING")
    state = {"CACHED": "SUCCEEDED", "SKIPPED": "SUCCEEDED", "RUNTIME_STATE_UNSPECIFIED": "PENDING"}.get(state, state)
    pods = record.get("pods") or []
    has_own = any(pod.get("type") == "EXECUTOR" for pod in pods)
    return [
        Pod(
            node=str(pod["name"]),
            name=str(pod["name"]),
            state="SUCCEEDED" if is_driver and has_own else state,
            is_driver=is_driver,
            started=date_of(record.get("create_time")),
            ended=date_of(record.get("end_time")),
            message=_message(record),
        )
        for pod in pods
        for is_driver in (pod.get("type") == "DRIVER",)
    ]


def _message(record: Mapping[str, Any]) -> str:
    return str((record.get("status_metadata") or {}).get("message") or "")
