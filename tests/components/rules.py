"""What Kubeflow Pipelines 2.17 do with a compiled pipeline, as far as the file shows it: one function for each trap.

Each was met on a real 2.17.0, or is in its API server's own compiler, and none is caught by kfp's compiler.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

Pipeline = Mapping[str, Any]

UNSAFE = frozenset({"n", "y", "no", "yes", "on", "off", "true", "false", "null"})
"""Names that a YAML 1.1 reader takes for something else."""
ARGUMENT_BYTES = 128 * 1024
"""The kernel's limit for one argument of a process; a task's inputs travel as one."""
PACKAGE_BYTES = 32 * 1024 * 1024
AT_THE_END = "ALL_UPSTREAM_TASKS_COMPLETED"


def broken(pipeline: Pipeline) -> list[str]:
    """Returns what a server would stumble over; nothing for a pipeline that keeps all rules."""
    return [line for rule in RULES for line in rule(pipeline)]


def importers(pipeline: Pipeline) -> Iterator[str]:
    """An importer of a task's output starts first, cannot find it, and fails the run."""
    executors = pipeline["deploymentSpec"]["executors"]
    labels = {label for label, executor in executors.items() if "importer" in executor}
    for name, task, _ in _tasks(pipeline):
        if pipeline["components"][task["componentRef"]["name"]].get("executorLabel") not in labels:
            continue
        given = (task.get("inputs") or {}).get("parameters") or {}
        for key, value in given.items():
            if "taskOutputParameter" in value:
                yield f"{name}: an importer takes {key} from a task"


def endings(pipeline: Pipeline) -> Iterator[str]:
    """A task that ignores failures is only ever run as an exit handler's; anything else breaks or is left out."""
    for name, task, dag in _tasks(pipeline):
        if (task.get("triggerPolicy") or {}).get("strategy") == AT_THE_END:
            before = task.get("dependentTasks") or []
            if len(before) != 1 or not before[0].startswith("exit-handler-"):
                yield f"{name}: ignores the failure of {', '.join(before)}, which is no exit handler"
            followers = [other for other, item in dag.items() if name in (item.get("dependentTasks") or ())]
            if followers:
                yield f"{name}: {', '.join(followers)} wait for it"


def loops(pipeline: Pipeline) -> Iterator[str]:
    """A failed iteration fails its loop, and workflow objects outgrow etcd: rounds and clients are no tasks."""
    for name, task, _ in _tasks(pipeline):
        if "parameterIterator" in task or "artifactIterator" in task:
            yield f"{name}: is a loop"


def retries(pipeline: Pipeline) -> Iterator[str]:
    """The shipped settings of Argo turn `set_retry` off for a task that ends with an error."""
    for name, task, _ in _tasks(pipeline):
        if "retryPolicy" in task:
            yield f"{name}: relies on set_retry"


def names(pipeline: Pipeline) -> Iterator[str]:
    """Names that some readers of YAML take for a truth value are lost there."""
    for component, values in pipeline["components"].items():
        parameters = {
            **((values.get("inputDefinitions") or {}).get("parameters") or {}),
            **((values.get("outputDefinitions") or {}).get("parameters") or {}),
        }
        for key in sorted(UNSAFE & set(parameters)):
            yield f"{component}: a parameter is named {key}"


def resources(pipeline: Pipeline) -> Iterator[str]:
    """A resource that comes from an integer parameter is dropped without a word."""
    for label, executor in pipeline["deploymentSpec"]["executors"].items():
        for key, value in ((executor.get("container") or {}).get("resources") or {}).items():
            if "{{" in json.dumps(value):
                yield f"{label}: its {key} comes from a parameter"


def sizes(pipeline: Pipeline) -> Iterator[str]:
    """A task's inputs, and each argument of its container, must fit into one argument of a process."""
    if len(json.dumps(pipeline)) > PACKAGE_BYTES:
        yield "the package is too large to be uploaded"
    defaults = ((pipeline["root"].get("inputDefinitions") or {}).get("parameters") or {}).values()
    shared = sum(len(json.dumps(item.get("defaultValue", ""))) for item in defaults)
    for name, task, _ in _tasks(pipeline):
        if shared + len(json.dumps(task.get("inputs") or {})) > ARGUMENT_BYTES:
            yield f"{name}: its inputs do not fit into one argument"
    for label, executor in pipeline["deploymentSpec"]["executors"].items():
        container = executor.get("container") or {}
        if any(len(part) > ARGUMENT_BYTES for part in (*container.get("command", ()), *container.get("args", ()))):
            yield f"{label}: an argument of its container is too long"


RULES: tuple[Callable[[Pipeline], Iterator[str]], ...] = (
    importers, endings, loops, retries, names, resources, sizes,
)  # fmt: skip


def _tasks(pipeline: Pipeline) -> Iterator[tuple[str, Mapping[str, Any], Mapping[str, Any]]]:
    """Yields each task with its name and the group it is in."""
    for part in (pipeline["root"], *pipeline["components"].values()):
        dag = (part.get("dag") or {}).get("tasks") or {}
        for name, task in dag.items():
            yield name, task, dag
