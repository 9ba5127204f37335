"""The phases of a run, from preparation to report: a command runs all of them, a pipeline's task runs one."""

from __future__ import annotations

from pathlib import Path

from lwfed import environment
from lwfed.drive.session import Session
from lwfed.drive.trackers import record_finish
from lwfed.round.train_stage import train_stage as run_stage
from lwfed.run.runs import Options
from lwfed.run.tasks import RunTask, StageTask
from lwfed.steps.experiment import place_of, run_stages
from lwfed.steps.prepare_remote import prepare_remote
from lwfed.store.local import LocalStore
from lwfed.store.protocol import Store
from lwfed.types.records import RunRecord, RunSummary, StageRecord


def prepare(session: Session, *, options: Options, drafted: RunRecord | None = None) -> RunRecord:
    """Prepares the run on a machine that has its data.

    Args:
        session: This process's session.
        options: The run's options, with its id.
        drafted: The run as returned by `draft`, if drafted already.

    Raises:
        LwfedError: Any error of `lwfed.steps.prepare`.
    """
    if session.launcher.remote:
        return prepare_remote(
            session.spec, options=options, launcher=session.launcher, store=session.store, emit=session.emit
        )
    from lwfed.steps.prepare import draft
    from lwfed.steps.prepare import prepare as prepare_drafted

    cache = environment.cache_folder()
    if drafted is None:
        drafted = draft(session.spec, store=session.store, options=options, emit=session.emit, cache=cache)
    return prepare_drafted(drafted, store=session.store, emit=session.emit, cache=cache)


def train_all(session: Session, run: RunRecord, *, last_stage: int | None = None) -> RunSummary:
    """Runs the uncommitted stages up to `last_stage`; returns the summary. Raises what `run_stages` raises."""
    return run_stages(
        run, launcher=session.launcher, store=session.store, emit=session.emit, cache=_cache(session),
        last_stage=last_stage,
    )  # fmt: skip


def train_one(session: Session, run: RunRecord, stage: int) -> StageRecord:
    """Runs the uncommitted rounds of one stage; returns its StageRecord. Raises what `train_stage` raises."""
    place = place_of(run, cache=_cache(session))
    task = StageTask(store=session.store.uri, run_id=run.run_id, stage=stage, place=place)
    return run_stage(task, launcher=session.launcher, store=session.store, emit=session.emit)


def finish(session: Session, run: RunRecord, summary: RunSummary) -> None:
    """Writes the run's report and figures, and records the run's end."""
    task = RunTask(store=session.store.uri, run_id=run.run_id, place=place_of(run, cache=None))
    session.launcher.server("finish", task, emit=session.emit)
    for log, _ in session.records:
        record_finish(run, summary, store=session.store, tracker=log)


def client_cache(store: Store) -> Path:
    """Returns the folder for frozen blocks of clients on this machine: in the store if it is local."""
    return store.root / "cache" if isinstance(store, LocalStore) else environment.cache_folder() / "clients"


def _cache(session: Session) -> Path | None:
    return None if session.launcher.remote else client_cache(session.store)
