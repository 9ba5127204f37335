"""A run's steps from preparation to report: the laptop's command takes them all, a pipeline's task takes one."""

from __future__ import annotations

from pathlib import Path

from lwfed import environment
from lwfed.drive.session import Session
from lwfed.drive.trackers import tell_finish
from lwfed.round.train_stage import train_stage as run_stage
from lwfed.run.runs import Options
from lwfed.run.tasks import RunTask, StageTask
from lwfed.steps.experiment import place_of, run_stages
from lwfed.steps.prepare_there import prepare_there
from lwfed.store.local import LocalStore
from lwfed.store.protocol import Store
from lwfed.types.records import RunRecord, RunSummary, StageRecord


def prepare(session: Session, *, options: Options, drafted: RunRecord | None = None) -> RunRecord:
    """Prepares the run, where its data are.

    Args:
        session: This process's.
        options: How the run was asked for; they name it.
        drafted: The run as `draft` returned it, where that is done already.

    Raises:
        LwfedError: What `lwfed.steps.prepare` raises.
    """
    if session.launcher.remote:
        return prepare_there(
            session.spec, options=options, launcher=session.launcher, store=session.store, emit=session.emit
        )
    from lwfed.steps.prepare import draft
    from lwfed.steps.prepare import prepare as prepare_here

    cache = environment.cache_folder()
    if drafted is None:
        drafted = draft(session.spec, store=session.store, options=options, cache=cache)
    return prepare_here(drafted, store=session.store, emit=session.emit, cache=cache)


def train_all(session: Session, run: RunRecord, *, last_stage: int | None = None) -> RunSummary:
    """Runs what is left of all stages, up to one; returns the summary. Raises what `run_stages` raises."""
    return run_stages(
        run, launcher=session.launcher, store=session.store, emit=session.emit, cache=_cache(session),
        last_stage=last_stage,
    )  # fmt: skip


def train_one(session: Session, run: RunRecord, stage: int) -> StageRecord:
    """Runs what is left of one stage; returns its StageRecord. Raises what `lwfed.round.train_stage` raises."""
    place = place_of(run, cache=_cache(session))
    task = StageTask(store=session.store.uri, run_id=run.run_id, stage=stage, place=place)
    return run_stage(task, launcher=session.launcher, store=session.store, emit=session.emit)


def finish(session: Session, run: RunRecord, summary: RunSummary) -> None:
    """Writes the run's report and figures, and records that the run is over."""
    task = RunTask(store=session.store.uri, run_id=run.run_id, place=place_of(run, cache=None))
    session.launcher.server("finish", task, emit=session.emit)
    for log, _ in session.records:
        tell_finish(run, summary, store=session.store, tracker=log)


def client_cache(store: Store) -> Path:
    """Returns where clients of this machine keep frozen blocks: beside the store's blocks, where those are here."""
    return store.root / "cache" if isinstance(store, LocalStore) else environment.cache_folder() / "clients"


def _cache(session: Session) -> Path | None:
    return None if session.launcher.remote else client_cache(session.store)
