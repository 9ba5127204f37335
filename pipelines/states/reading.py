"""Reads what a run's tasks do from a server: the only place that knows which versions of its API there are."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Protocol

from lwfed.types.errors import NotFoundError
from pipelines.client.kubeflow import Kfp
from pipelines.states.records import Snapshot, Task
from pipelines.states.run_tasks import RunTasks
from pipelines.states.workflow import WorkflowNodes


class Version(Protocol):
    """A way in which some versions of Kubeflow Pipelines say what a run's tasks do."""

    def path(self, run_id: str) -> str:
        """Returns the path of what is read."""

    def parse(self, answer: Mapping[str, Any], tasks: Mapping[str, Task]) -> Snapshot | None:
        """Reads an answer; None where this server says it in another way, or nothing yet."""


VERSIONS: tuple[Version, ...] = (WorkflowNodes(), RunTasks())
"""In the order in which they are tried."""


def read_states(kfp: Kfp, run_id: str, tasks: Mapping[str, Task]) -> Snapshot:
    """Reads what the tasks of a run do.

    Args:
        kfp: The server.
        run_id: The run.
        tasks: The pipeline's tasks, see `task_names`.

    Returns:
        The snapshot; an empty one for a run that has just been made.

    Raises:
        LwfedError: The server refuses or does not answer.
    """
    for version in VERSIONS:
        try:
            content = b"".join(kfp.read(version.path(run_id), about=f"the tasks of the run {run_id}"))
            answer = json.loads(content)
        except (NotFoundError, ValueError):
            continue
        found = version.parse(answer, tasks) if isinstance(answer, dict) else None
        if found is not None:
            return found
    return Snapshot()
