"""Trains a run on this machine, for every command: first checks what is committed, then drives the run."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from rich.console import Console

from lwfed import environment
from lwfed.catalog.launcher import launcher_kind
from lwfed.drive.trackers import has_finish
from lwfed.run import runs
from lwfed.run.events import Emit
from lwfed.run.runs import Options
from lwfed.spec.run import RunSpec
from lwfed.store.protocol import Store
from lwfed.types.records import RunRecord, RunSummary


@dataclass(frozen=True, slots=True)
class RunRequest:
    """A request to train a run.

    Attributes:
        spec: The experiment.
        options: Its options, with the run's id.
        drafted: The drafted run; None if only pods see the data.
        done: The id of a run that has already done all of it, or None.
    """

    spec: RunSpec
    options: Options
    drafted: RunRecord | None
    done: str | None


def look_up(spec: RunSpec, *, options: Options, store: Store, emit: Emit, whole: bool = True) -> RunRequest:
    """Names a run and checks by its stages' keys whether it is committed already. Needs no torch.

    Args:
        spec: The experiment.
        options: Its options.
        store: The run's store.
        emit: Receives `Fetching` and `Hashing`.
        whole: Whether all stages are wanted; a part of a run never counts as done.

    Raises:
        SpecError: Stage cuts do not fit the encoders.
        DataError: The data are missing.
        ResumeError: The run exists with another plan.
    """
    if launcher_kind(spec.launch.kind).remote:  # only the clients' machines see the data
        run_id = options.run_id or runs.new_run_id(spec, now=datetime.now(UTC))
        return RunRequest(spec, replace(options, run_id=run_id), drafted=None, done=None)
    from lwfed.steps.prepare import draft  # loads numpy

    drafted = draft(spec, store=store, options=options, emit=emit, cache=environment.cache_folder())
    done = None
    if whole and not options.fresh and options.parent is None:
        found = runs.find_finished(store, drafted)
        if found is not None and options.run_id in (None, found) and has_finish(found, store=store):
            done = found
    return RunRequest(spec, replace(options, run_id=drafted.run_id), drafted=drafted, done=done)


def train(
    request: RunRequest,
    *,
    store: Store,
    console: Console,
    resume_with: str | None = None,
    last_stage: int | None = None,
) -> RunSummary:
    """Trains what a run has not committed yet, shows progress, and records it.

    Args:
        request: The request, as returned by `look_up`.
        store: The run's store.
        console: Shows progress.
        resume_with: The command that continues after an interrupt; None: `lwfed run` with the run's id.
        last_stage: Stops after this stage.

    Returns:
        The run's summary.

    Raises:
        LwfedError: The error that ended the run.
        KeyboardInterrupt: On an interrupt or SIGTERM; committed work stays.
    """
    with console.status("loading torch and the models") if console.is_terminal else nullcontext():
        from lwfed.drive.session import driving
        from lwfed.steps.experiment import run_stages
    run_id = request.options.run_id or ""
    with driving(request.spec, run_id=run_id, store=store, console=console, part=None) as session:
        run = session.prepare(request)
        try:
            summary = run_stages(
                run, launcher=session.launcher, store=store, emit=session.emit, cache=session.cache,
                last_stage=last_stage,
            )  # fmt: skip
            session.finish(run, summary)
        except KeyboardInterrupt:
            again = resume_with or f"lwfed run ... --run-id {run_id}"
            console.print(f"interrupted; continue with: {again}", highlight=False, soft_wrap=True)
            raise
    return summary
