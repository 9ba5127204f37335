"""How every command trains on this machine: it looks first whether the work is committed, then drives the run."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from rich.console import Console

from lwfed import environment
from lwfed.catalog.launcher import launcher_kind
from lwfed.drive.trackers import is_told
from lwfed.run import runs
from lwfed.run.runs import Options
from lwfed.spec.run import RunSpec
from lwfed.store.protocol import Store
from lwfed.types.records import RunRecord, RunSummary


@dataclass(frozen=True, slots=True)
class Wanted:
    """A run that is asked for.

    Attributes:
        spec: The experiment.
        options: How; they name the run.
        drafted: The run as far as this machine knows it; None where only pods see the data.
        done: The run that has done all of it already, or None.
    """

    spec: RunSpec
    options: Options
    drafted: RunRecord | None
    done: str | None


def look_up(spec: RunSpec, *, options: Options, store: Store, whole: bool = True) -> Wanted:
    """Names a run, and looks by its stages' keys whether it is committed already. Needs no torch.

    Args:
        spec: The experiment.
        options: How it is asked for.
        store: Where it is, or will be.
        whole: All stages are wanted; a part of a run is never taken for done.

    Raises:
        SpecError: Stage cuts do not fit the encoders.
        DataError: The data are not there.
        ResumeError: The run exists with another plan.
    """
    from lwfed.steps.prepare import draft, new_run_id

    if launcher_kind(spec.launch.kind).remote:  # only the clients' machines see the data
        run_id = options.run_id or new_run_id(spec, now=datetime.now(UTC))
        return Wanted(spec, replace(options, run_id=run_id), drafted=None, done=None)
    drafted = draft(spec, store=store, options=options, cache=environment.cache_folder())
    done = None
    if whole and not options.fresh and options.parent is None:
        found = runs.find_finished(store, drafted)
        if found is not None and options.run_id in (None, found) and is_told(found, store=store):
            done = found
    return Wanted(spec, replace(options, run_id=drafted.run_id), drafted=drafted, done=done)


def train(
    wanted: Wanted, *, store: Store, console: Console, go_on: str | None = None, last_stage: int | None = None
) -> RunSummary:
    """Trains what is not committed of a run, shows how it goes, and records it.

    Args:
        wanted: What `look_up` returned.
        store: Where it is.
        console: Where progress is shown.
        go_on: The command that goes on with it after an interrupt; None: `lwfed run` with the run's id.
        last_stage: Stops after this stage.

    Returns:
        The run's summary.

    Raises:
        LwfedError: What ended the run.
        KeyboardInterrupt: On an interrupt or SIGTERM; what is committed stands.
    """
    with console.status("loading torch and the models") if console.is_terminal else nullcontext():
        from lwfed.drive import walk
        from lwfed.drive.session import driving
    run_id = wanted.options.run_id or ""
    with driving(wanted.spec, run_id=run_id, store=store, console=console, whole=True) as session:
        run = walk.prepare(session, options=wanted.options, drafted=wanted.drafted)
        session.track(run, part=None)
        try:
            summary = walk.train_all(session, run, last_stage=last_stage)
            walk.finish(session, run, summary)
        except KeyboardInterrupt:
            again = go_on or f"lwfed run ... --run-id {run_id}"
            console.print(f"interrupted; go on with: {again}", highlight=False, soft_wrap=True)
            raise
    return summary
