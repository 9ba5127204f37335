"""A session drives a run: all of it for a command on a laptop, a part of it for a pipeline's task.

It opens the run's resources, shows and records events, records an early end, and closes everything.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rich.console import Console

from lwfed import environment
from lwfed.drive.display import Display
from lwfed.drive.interrupts import interrupting_on_sigterm
from lwfed.drive.trackers import NO_STAGE, make_trackers
from lwfed.launch.launchers import make_launcher
from lwfed.run import runs
from lwfed.run.events import Event, RoundDone, RunStarted, StageDone
from lwfed.run.heartbeat import beating
from lwfed.run.launcher import Launcher
from lwfed.spec.run import RunSpec
from lwfed.store.protocol import Store
from lwfed.tracking.jsonlines import JsonLines
from lwfed.types.errors import LwfedError
from lwfed.types.records import RunRecord

if TYPE_CHECKING:
    from lwfed.tracking.mlflow.process import MlflowFollower


@dataclass(frozen=True, slots=True)
class Session:
    """The resources of a process that drives a run.

    Attributes:
        spec: The experiment.
        run_id: The run.
        store: The run's store.
        launcher: Runs clients' and the server's steps.
        display: Shows events.
        records: The run's log and its follower for MLflow, if any; empty before `track`.
    """

    spec: RunSpec
    run_id: str
    store: Store
    launcher: Launcher
    display: Display
    records: list[tuple[JsonLines, MlflowFollower | None]] = field(default_factory=list)

    def emit(self, event: Event) -> None:
        """Shows an event; records the run's start, its rounds and its stages."""
        self.display(event)
        for log, _ in self.records:
            match event:
                case RunStarted(record=run):
                    log.start(run.to_values())
                case RoundDone(record=done):
                    log.round(done.to_values())
                case StageDone(record=finished):
                    log.stage(finished.to_values())

    def track(self, run: RunRecord, *, part: int | None) -> JsonLines:
        """Opens the run's log. The next event must be `RunStarted`.

        Args:
            run: The run.
            part: The part of it that this process runs; see `make_trackers`.
        """
        made = make_trackers(run, self.spec.tracking, store=self.store, warn=self.display.warn, stage=part)
        self.records.append(made)
        return made[0]

    def mlflow(self) -> MlflowFollower | None:
        """Closes the log and returns its follower for MLflow, whose status is final then."""
        for log, _ in self.records:
            log.close()
        return next((mlflow for _, mlflow in reversed(self.records) if mlflow is not None), None)


@contextmanager
def driving(spec: RunSpec, *, run_id: str, store: Store, console: Console, whole: bool = False) -> Iterator[Session]:
    """Opens a run's session, records an early end, and closes it.

    Args:
        spec: The experiment.
        run_id: The run.
        store: The run's store.
        console: Shows progress.
        whole: Whether this process drives all of the run: then an interrupt ends the run, and a warning names the
            command for records that MLflow lacks. Else the platform decides what follows an interrupt.

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
        session = Session(spec, run_id, store, launcher, display)
        try:
            yield session
        except LwfedError as error:
            if not whole and not session.records:
                _reopen_log(session)
            for log, _ in session.records:
                log.fail(str(error))
            raise
        except KeyboardInterrupt as error:
            for log, _ in session.records if whole else ():
                log.fail(str(error) or "interrupted", cancelled=True)
            raise
        finally:
            mlflow = session.mlflow()
            if whole and mlflow is not None and not mlflow.status.complete:
                display.warn(f"MLflow lacks some records; `lwfed report {run_id} --mlflow` adds them")


def _reopen_log(session: Session) -> None:
    """Opens the log of a run that an earlier task prepared, for a task that failed before it read the run."""
    with suppress(LwfedError):  # the store itself may have failed
        run = runs.find_run(session.store, session.run_id)
        if run is not None:
            session.track(run, part=NO_STAGE).start(run.to_values())
