"""A session drives a run: all of it for a command on a laptop, a part of it for a pipeline's task.

It opens the run's resources, shows and records events, records an early end, and closes everything.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from lwfed import environment
from lwfed.drive.display import Display
from lwfed.drive.interrupts import interrupting_on_sigterm
from lwfed.drive.trackers import NO_STAGE, record_finish, start_trackers
from lwfed.drive.training import RunRequest
from lwfed.launch.launchers import make_launcher
from lwfed.run import runs
from lwfed.run.events import Event, RoundDone, RunStarted, StageDone
from lwfed.run.heartbeat import beating
from lwfed.run.launcher import Launcher
from lwfed.run.tasks import RunTask
from lwfed.spec.run import RunSpec
from lwfed.steps.experiment import place_of
from lwfed.steps.prepare_remote import prepare_remote
from lwfed.store.local import LocalStore
from lwfed.store.protocol import Store
from lwfed.tracking.jsonlines import JsonLines, event_of, event_of_failure
from lwfed.tracking.mlflow.process import MlflowFollower
from lwfed.types.errors import LwfedError
from lwfed.types.records import RunRecord, RunSummary


@dataclass(slots=True)
class Session:
    """The resources of a process that drives a run.

    Attributes:
        spec: The experiment.
        run_id: The run.
        store: The run's store.
        launcher: Runs clients' and the server's steps.
        display: Shows events.
        part: The part of the run that this process has; see `start_trackers`.
        log: The run's log; None before `RunStarted`.
        mlflow: Its follower for MLflow; None if MLflow is off.
    """

    spec: RunSpec
    run_id: str
    store: Store
    launcher: Launcher
    display: Display
    part: int | None
    log: JsonLines | None = None
    mlflow: MlflowFollower | None = None

    @property
    def cache(self) -> Path | None:
        """The folder for frozen blocks of clients on this machine, in a local store; None if clients run elsewhere."""
        if self.launcher.remote:
            return None
        if isinstance(self.store, LocalStore):
            return self.store.root / "cache"
        return environment.cache_folder() / "clients"

    def prepare(self, request: RunRequest) -> RunRecord:
        """Prepares a run on a machine that has its data. Raises any error of `lwfed.steps.prepare`."""
        if request.drafted is None:
            return prepare_remote(
                self.spec, options=request.options, launcher=self.launcher, store=self.store, emit=self.emit
            )
        from lwfed.steps.prepare import prepare

        return prepare(request.drafted, store=self.store, emit=self.emit, cache=environment.cache_folder())

    def emit(self, event: Event) -> None:
        """Shows an event; records the run's start, its rounds and its stages."""
        self.display(event)
        if isinstance(event, RunStarted):
            self.track(event.record, part=self.part)
        elif self.log is not None and isinstance(event, RoundDone | StageDone):
            self.log.record(event_of(event.kind, event.record.to_values()))

    def track(self, run: RunRecord, *, part: int | None) -> None:
        """Opens the run's log and records the start of a part; see `start_trackers`."""
        self.log, self.mlflow = start_trackers(
            run, self.spec.tracking, store=self.store, warn=self.display.warn, part=part
        )

    def finish(self, run: RunRecord, summary: RunSummary) -> None:
        """Writes the run's report and figures, and records the run's end."""
        task = RunTask(store=self.store.uri, run_id=run.run_id, place=place_of(run, cache=None))
        self.launcher.server("finish", task, emit=self.emit)
        if self.log is not None:
            record_finish(run, summary, store=self.store, log=self.log)

    def fail(self, reason: str, *, cancelled: bool = False) -> None:
        """Records an early end, unless the run has not started."""
        if self.log is not None:
            self.log.record(event_of_failure(reason, cancelled=cancelled))

    def delivered(self) -> MlflowFollower | None:
        """Waits for MLflow to have the run's records; returns the follower, whose status is final then."""
        if self.mlflow is not None:
            self.mlflow.close()
        return self.mlflow


@contextmanager
def driving(spec: RunSpec, *, run_id: str, store: Store, console: Console, part: int | None) -> Iterator[Session]:
    """Opens a run's session, records an early end, and closes it.

    Args:
        spec: The experiment.
        run_id: The run.
        store: The run's store.
        console: Shows progress.
        part: The part of the run that this process has; see `start_trackers`. If that is all of it, an interrupt ends
            the run, and a warning names the command for records that MLflow lacks. Else the platform decides what
            follows an interrupt.

    Raises:
        UnreachableError: The cluster does not answer.
    """
    with (
        interrupting_on_sigterm(),
        Display(console, total_rounds=sum(spec.stages.rounds)) as display,
        closing(make_launcher(spec, store=store, run_id=run_id)) as launcher,
        beating(store, run_id, every_s=spec.kubernetes.heartbeat_s, by=environment.own_name())
        if launcher.remote
        else nullcontext(),
    ):
        session = Session(spec, run_id, store, launcher, display, part)
        whole = part is None
        try:
            yield session
        except LwfedError as error:
            if not whole and session.log is None:
                _reopen_log(session)
            session.fail(str(error))
            raise
        except KeyboardInterrupt as error:
            if whole:
                session.fail(str(error) or "interrupted", cancelled=True)
            raise
        finally:
            mlflow = session.delivered()
            if whole and mlflow is not None and not mlflow.status.complete:
                display.warn(
                    f"MLflow lacks some records; once it takes them, `lwfed report {run_id} --mlflow` adds them"
                )


def _reopen_log(session: Session) -> None:
    """Opens the log of a run that an earlier task prepared, for a task that failed before it read the run."""
    with suppress(LwfedError):  # the store itself may have failed
        run = runs.find_run(session.store, session.run_id)
        if run is not None:
            session.track(run, part=NO_STAGE)
