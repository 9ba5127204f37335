"""Names, labels and task lists of Jobs. Equal work has equal names, so that a coordinator finds another's Jobs."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from lwfed.run.agents import SERVER
from lwfed.run.tasks import AgentTask, PodTask, RoundTask
from lwfed.spec.kubernetes import KubernetesSpec
from lwfed.types.canonical import digest_of

RUN_LABEL = "lwfed/run"
POOL_LABEL = "lwfed/pool"
INDEX_LABEL = "batch.kubernetes.io/job-completion-index"
JOB_LABEL = "batch.kubernetes.io/job-name"
TASKS_NOTE = "lwfed/tasks"
CLIENTS_NOTE = "lwfed/clients"
TEMPLATE_NOTE = "lwfed/template"

MAX_NAME = 57
"""Longest Job name in characters: with an index of up to five digits, its pods' host names still fit a label."""

_LABEL = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")


def label_value(text: str) -> str:
    """Returns a text as a label's value: unchanged if valid, else its readable part and eight digits of its digest."""
    if _LABEL.fullmatch(text):
        return text
    readable = re.sub(r"[^A-Za-z0-9]+", "-", text).strip("-")[:50].rstrip("-")
    return f"{readable}-{digest_of(text)[:8]}".lstrip("-")


def job_name(step: str, task: PodTask, *, run_id: str, pool: str, attempt: int) -> str:
    """Returns the name of a Job, such as `lwfed-1a2b3c4d-r007-train-clients-a1`: of its stage, or else of its run.

    Args:
        step: The step that its pods run.
        task: One of its tasks.
        run_id: The run.
        pool: Its pool.
        attempt: The number of this Job among those for the same work, from 1.
    """
    parts = ["lwfed", digest_of(run_id)[:8]]
    if isinstance(task, RoundTask):
        parts = ["lwfed", task.stage_key[:8], f"r{task.server_round:03d}"]
    elif isinstance(task, AgentTask):
        parts = ["lwfed", task.stage_key[:8]]
    word = step.partition("-")[0]  # a client's step and the server's differ in the pool that follows
    name = "-".join([*parts, word, pool, f"a{attempt}"])
    assert len(name) <= MAX_NAME, name
    return name


def call_labels(step: str, task: PodTask, *, run_id: str) -> dict[str, str]:
    """Returns the labels that select all Jobs and pods of one call of a launcher."""
    labels = {
        "app.kubernetes.io/name": "lwfed",
        "app.kubernetes.io/managed-by": "lwfed",
        RUN_LABEL: label_value(run_id),
        "lwfed/step": step,
    }
    if isinstance(task, RoundTask):
        labels |= {"lwfed/stage-key": task.stage_key[:8], "lwfed/round": str(task.server_round)}
    elif isinstance(task, AgentTask):
        labels |= {"lwfed/stage-key": task.stage_key[:8]}
    return labels


def selector(labels: Mapping[str, str]) -> str:
    """Returns labels as a selector."""
    return ",".join(f"{key}={value}" for key, value in sorted(labels.items()))


def run_selector(run_id: str) -> str:
    """Returns the selector of all Jobs and pods of a run."""
    return selector({"app.kubernetes.io/managed-by": "lwfed", RUN_LABEL: label_value(run_id)})


def task_list(step: str, tasks: Sequence[PodTask], *, run_id: str, settings: KubernetesSpec) -> dict[str, Any]:
    """Returns a Job's task list, as the store has it: one task per pod, and the heartbeat that pods watch."""
    return {
        "step": step,
        "tasks": [task.model_dump(mode="json") for task in tasks],
        "heartbeat": {"run_id": run_id, "every_s": settings.heartbeat_s, "timeout_s": settings.heartbeat_timeout_s},
    }


def clients_of(listed: Mapping[str, Any]) -> tuple[str, ...]:
    """Returns the clients of a Job in the order of its indexes."""
    return tuple(task.get("client", SERVER) for task in listed["tasks"])


def covers(listed: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    """Whether a Job with one task list does all the tasks of another list, with the same settings."""
    have = {task.get("client", SERVER): task for task in listed["tasks"]}
    same = listed["step"] == wanted["step"] and listed.get("heartbeat") == wanted.get("heartbeat")
    return same and all(have.get(task.get("client", SERVER)) == task for task in wanted["tasks"])
