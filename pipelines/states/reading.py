"""Reads the states of a run's tasks from a server; the only module that knows the versions of the API."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from lwfed.types.errors import LwfedError, NotFoundError
from pipelines.client.runs import KnownRun
from pipelines.states import run_tasks, workflow
from pipelines.states.records import Snapshot
from pipelines.tasks import Task

READERS: Mapping[str, Callable[[Mapping[str, Any], Mapping[str, Task]], Snapshot | None]] = {
    "/apis/v1beta1/runs/{}": workflow.parse,
    "/apis/v2beta1/runs/{}?view=FULL": run_tasks.parse,
}
"""Path -> parser of its answer, in order of preference; a parser returns None if an answer has no tasks."""
NOT_BEGUN = (None, "", "PENDING", "CANCELING")
"""States in which a run may have no tasks yet; 2.17.0 returns none for a moment after a run's creation."""


class UnknownAnswerError(LwfedError):
    """A server reports tasks in an unknown format."""


def read_states(run: KnownRun, found: Any) -> Snapshot:
    """Reads the states of a run's tasks.

    Args:
        run: The run.
        found: The API's record of it, read before.

    Returns:
        The snapshot; empty for a run that was just created.

    Raises:
        UnknownAnswerError: The run has begun, and no parser understands the server's answers.
        LwfedError: The server refuses or does not answer.
    """
    answers: list[str] = []
    for form, parse in READERS.items():
        path = form.format(run.id)
        try:
            answer = json.loads(run.kfp.read(path, about=f"the tasks of the run {run.id}"))
        except (NotFoundError, ValueError) as error:
            answers.append(f"{path}: {'not found' if isinstance(error, NotFoundError) else 'not JSON'}")
            continue
        if not isinstance(answer, dict):
            answers.append(f"{path}: not a JSON object")
        elif (snapshot := parse(answer, run.tasks)) is not None:
            return snapshot
        else:
            answers.append(f"{path}: JSON with {', '.join(sorted(answer)) or 'nothing'}")
    if found.state in NOT_BEGUN:
        return Snapshot()
    raise UnknownAnswerError(
        f"the run {run.id} is {found.state}, but {run.kfp.endpoint} reports its tasks in a format that lwfed does not "
        f"know ({'; '.join(answers)})",
        remedy=f"use Kubeflow Pipelines 2.17 or a newer lwfed; the run itself is not affected: {run.page}",
    )
