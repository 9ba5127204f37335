"""`lwfed retry`: restarts the failed tasks of a run."""

from __future__ import annotations

from lwfed.cli.options import Json
from pipelines.client.connection import Access
from pipelines.client.errors import RefusedError
from pipelines.client.pace import usual_pace
from pipelines.client.runs import KnownRun, is_over, open_run
from pipelines.commands.screen import make_screen
from pipelines.commands.wait import report_and_wait
from pipelines.options import START_TIMEOUT_S, KfpRun, StartTimeout, Wait


def retry(
    run: KfpRun,
    wait: Wait = False,
    start_timeout: StartTimeout = START_TIMEOUT_S,
    *,
    access: Access,
    as_json: Json = False,
) -> None:
    """Restart the failed tasks of a pipeline run; its finished tasks and committed rounds are kept."""
    known, found = open_run(access, run)
    if found.state in ("SUCCEEDED", "SKIPPED"):
        raise RefusedError(
            f"the run {known.id} is {found.state}: none of its tasks failed",
            remedy="lwfed rerun RUN --stage S trains a stage again",
        )
    if not is_over(found):
        raise RefusedError(
            f"the run {known.id} is {found.state or 'PENDING'}: only failed runs can be retried",
            remedy=f"wait for its end, or end it with lwfed cancel {known.id}",
        )
    request_retry(known)
    line = f"{known.title} is retried: its failed tasks start again"
    pace = usual_pace(start_timeout_s=start_timeout)
    report_and_wait(known, line=line, screen=make_screen(as_json), wait=wait, pace=pace, again=True)


def request_retry(run: KnownRun) -> None:
    """Requests a retry of a run.

    Raises:
        RefusedError: The server refuses.
    """
    try:
        run.kfp.call(run.kfp.client._run_api.run_service_retry_run, run.id, about=f"to retry the run {run.id}")
    except RefusedError as error:
        remedy = "submit the experiment again: committed work is not repeated"
        raise RefusedError(error.problem, remedy=remedy, status=error.status) from None
