"""What `lwfed retry` does: starts the failed tasks of a run again."""

from __future__ import annotations

from typing import Any

from pipelines.client.connection import Access, Kfp
from pipelines.client.errors import RefusedError
from pipelines.client.pace import USUAL, Pace
from pipelines.client.runs import is_over, open_run
from pipelines.commands.screen import Screen
from pipelines.commands.wait import settle


def retry_run(access: Access, text: str, *, screen: Screen, wait: bool, pace: Pace = USUAL) -> None:
    """Starts the failed tasks of a run again; those that succeeded stay.

    Args:
        access: The server.
        text: Any name of the run.
        screen: Where to say so.
        wait: Follow the run to its end.
        pace: How often to look, and how long to wait.

    Raises:
        RefusedError: It has not failed, or Kubeflow Pipelines cannot.
        LwfedError: The server does not answer; with `wait`, the run's own error.
    """
    run, found = open_run(access, text)
    retry(run.kfp, found)
    line = f"{run.title} is retried: what has failed starts again"
    settle(run, line=line, screen=screen, wait=wait, pace=pace, again=True)


def retry(kfp: Kfp, found: Any) -> None:
    """Asks the server to retry a run.

    Args:
        kfp: The server.
        found: The API's record of the run.

    Raises:
        RefusedError: It has not failed, or Kubeflow Pipelines cannot.
    """
    run_id = str(found.run_id)
    if found.state in ("SUCCEEDED", "SKIPPED"):
        raise RefusedError(
            f"the run {run_id} is {found.state}: nothing of it failed",
            remedy="lwfed rerun RUN --stage S trains a stage again",
        )
    if not is_over(found):
        raise RefusedError(
            f"the run {run_id} is {found.state or 'PENDING'}: only what has failed can be tried again",
            remedy=f"wait for its end, or end it: lwfed cancel {run_id}",
        )
    try:
        kfp.call(kfp.client._run_api.run_service_retry_run, run_id, about=f"to retry the run {run_id}")
    except RefusedError as error:
        remedy = "submit the experiment again: what is committed is not done twice"
        raise RefusedError(error.problem, remedy=remedy, status=error.status) from None
