"""What `lwfed retry` does: starts the failed tasks of a run again."""

from __future__ import annotations

from lwfed.cli.options import Json
from pipelines.client.connection import Access
from pipelines.client.errors import RefusedError
from pipelines.client.pace import usual_pace
from pipelines.client.runs import KnownRun, is_over, open_run
from pipelines.commands.screen import make_screen
from pipelines.commands.wait import settle
from pipelines.options import START_TIMEOUT_S, KfpRun, StartTimeout, Wait


def retry(
    run: KfpRun,
    wait: Wait = False,
    start_timeout: StartTimeout = START_TIMEOUT_S,
    *,
    access: Access,
    as_json: Json = False,
) -> None:
    """Start the failed tasks of a pipeline run again; its finished tasks and committed rounds stay."""
    known, found = open_run(access, run)
    if found.state in ("SUCCEEDED", "SKIPPED"):
        raise RefusedError(
            f"the run {known.id} is {found.state}: nothing of it failed",
            remedy="lwfed rerun RUN --stage S trains a stage again",
        )
    if not is_over(found):
        raise RefusedError(
            f"the run {known.id} is {found.state or 'PENDING'}: only what has failed can be tried again",
            remedy=f"wait for its end, or end it: lwfed cancel {known.id}",
        )
    ask_retry(known)
    line = f"{known.title} is retried: what has failed starts again"
    pace = usual_pace(start_timeout_s=start_timeout)
    settle(known, line=line, screen=make_screen(as_json), wait=wait, pace=pace, again=True)


def ask_retry(run: KnownRun) -> None:
    """Asks the server to retry a run.

    Raises:
        RefusedError: It cannot.
    """
    try:
        run.kfp.call(run.kfp.client._run_api.run_service_retry_run, run.id, about=f"to retry the run {run.id}")
    except RefusedError as error:
        remedy = "submit the experiment again: what is committed is not done twice"
        raise RefusedError(error.problem, remedy=remedy, status=error.status) from None
