"""Reads the tasks of a compiled pipeline from its spec: names, titles and stages, in the order of execution."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lwfed.formats import natural_order


@dataclass(frozen=True, slots=True)
class Task:
    """A task of a pipeline.

    Attributes:
        name: Its name in the compiled pipeline.
        title: Its name for people.
        stage: The stage that it trains; None if it trains none.
    """

    name: str
    title: str
    stage: int | None = None


def task_names(pipeline: Mapping[str, Any]) -> dict[str, Task]:
    """Returns the tasks of a compiled pipeline in order, including those in groups such as the exit handler's.

    Args:
        pipeline: The pipeline's spec, as written by `kfp.compiler`.

    Returns:
        Name -> task.
    """
    found: dict[str, Task] = {}
    components = pipeline.get("components") or {}

    def look(part: Mapping[str, Any]) -> None:
        tasks = _tasks_in(part)
        for name in _in_order(tasks):
            inner = components.get((tasks[name].get("componentRef") or {}).get("name")) or {}
            if "dag" in inner:
                look(inner)
                continue
            title = (tasks[name].get("taskInfo") or {}).get("name") or name
            given = _parameters(tasks[name])
            stage = (given.get("stage", {}).get("runtimeValue") or {}).get("constant")
            trains = "plan_digest" in given or "input_digest" in given
            found[name] = Task(name, title, int(stage) if trains and stage is not None else None)

    look(pipeline.get("root") or {})
    return found


def texts_of(pipeline: Mapping[str, Any]) -> dict[str, str]:
    """Returns the texts that a compiled pipeline passes to its tasks: defaults of parameters, and constants."""
    definitions = ((pipeline.get("root") or {}).get("inputDefinitions") or {}).get("parameters") or {}
    found = {key: value.get("defaultValue") for key, value in definitions.items()}
    parts = [pipeline.get("root") or {}, *(pipeline.get("components") or {}).values()]
    for task in (task for part in parts for task in _tasks_in(part).values()):
        for key, value in _parameters(task).items():
            found.setdefault(key, (value.get("runtimeValue") or {}).get("constant"))
    return {key: value for key, value in found.items() if isinstance(value, str)}


def _tasks_in(part: Mapping[str, Any]) -> dict[str, Any]:
    return (part.get("dag") or {}).get("tasks") or {}


def _parameters(task: Mapping[str, Any]) -> dict[str, Any]:
    return (task.get("inputs") or {}).get("parameters") or {}


def _in_order(tasks: Mapping[str, Any]) -> list[str]:
    """Returns tasks sorted by dependency, then by name with numbers in numeric order."""
    left = natural_order(tasks)
    done: list[str] = []
    while left:
        ready = [name for name in left if set(tasks[name].get("dependentTasks") or ()) <= set(done)] or left[:1]
        done += ready
        left = [name for name in left if name not in ready]
    return done
