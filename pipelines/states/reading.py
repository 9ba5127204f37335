"""Reads what a run's tasks do from a server: the only place that knows which versions of its API there are."""

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
"""What reads the answer at which path, in the order in which they are tried; None where an answer has no tasks."""
NOT_BEGUN = (None, "", "PENDING", "CANCELING")
"""States in which a run may have no tasks yet: 2.17.0 gives none at all for a moment after a run was made."""


class UnknownAnswerError(LwfedError):
    """A server says what tasks do in a way that we do not know."""


def read_states(run: KnownRun, found: Any) -> Snapshot:
    """Reads what the tasks of a run do.

    Args:
        run: The run.
        found: The API's record of it, read before.

    Returns:
        The snapshot; an empty one for a run that has just been made.

    Raises:
        UnknownAnswerError: The run has begun, and no reader understands what the server says of its tasks.
        LwfedError: The server refuses or does not answer.
    """
    answers: list[str] = []
    for form, parse in READERS.items():
        path = form.format(run.id)
        try:
            answer = json.loads(run.kfp.read(path, about=f"the tasks of the run {run.id}"))
        except (NotFoundError, ValueError) as error:
            answers.append(f"{path}: {'not there' if isinstance(error, NotFoundError) else 'no JSON'}")
            continue
        if not isinstance(answer, dict):
            answers.append(f"{path}: no JSON object")
        elif (snapshot := parse(answer, run.tasks)) is not None:
            return snapshot
        else:
            answers.append(f"{path}: JSON with {', '.join(sorted(answer)) or 'nothing'}")
    if found.state in NOT_BEGUN:
        return Snapshot()
    raise UnknownAnswerError(
        f"the run {run.id} is {found.state}, and {run.kfp.endpoint} does not say what its tasks do in a way that lwfed "
        f"reads ({'; '.join(answers)})",
        remedy=f"lwfed reads Kubeflow Pipelines 2.17: use that or a newer lwfed; the run is not harmed: {run.page}",
    )
