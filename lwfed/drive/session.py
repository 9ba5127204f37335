"""One driver for a run, whoever drives it: the laptop's command drives all of it, a pipeline's task some part.

A session opens what that takes, shows and records what happens, records how it ends early, and lets go of everything.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rich.console import Console

from lwfed import environment
from lwfed.drive.display import Display
from lwfed.drive.interrupts import ending_on_terminate
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
    """What a process that drives a run holds.

    Attributes:
        spec: The experiment.
        run_id: The run.
        store: Where it is.
        launcher: For what others compute.
        display: Shows what happens.
        records: The run's log, and MLflow's follower where there is one; empty before `track`.
    """

    spec: RunSpec
    run_id: str
    store: Store
    launcher: Launcher
    display: Display
    records: list[tuple[JsonLines, MlflowFollower | None]] = field(default_factory=list)

    def emit(self, event: Event) -> None:
        """Shows an event, and records the run's start, its rounds and its stages."""
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
        """Opens the run's log. The next event is to be `RunStarted`.

        Args:
            run: The run.
            part: Which part of it this process has; see `make_trackers`.
        """
        made = make_trackers(run, self.spec.tracking, store=self.store, warn=self.display.warn, stage=part)
        self.records.append(made)
        return made[0]

    def mlflow(self) -> MlflowFollower | None:
        """Closes the log, and returns MLflow's follower, which then knows what has become of the run there."""
        for log, _ in self.records:
            log.close()
        return next((mlflow for _, mlflow in reversed(self.records) if mlflow is not None), None)


@contextmanager
def driving(spec: RunSpec, *, run_id: str, store: Store, console: Console, whole: bool = False) -> Iterator[Session]:
    """Opens what it takes to drive a run, records how it ends early, and closes it.

    Args:
        spec: The experiment.
        run_id: The run.
        store: Where it is.
        console: Where progress is shown.
        whole: This process drives all of the run: its interrupt is the run's end, and records that MLflow lacks are
            for somebody to add later. Else a platform decides what follows an interrupt.

    Raises:
        UnreachableError: The cluster does not answer.
    """
    with (
        ending_on_terminate(),
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
                _record_again(session)
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
                display.warn(f"MLflow lacks records; lwfed report {run_id} --mlflow logs them")


def _record_again(session: Session) -> None:
    """Opens the log of a run that an earlier task has prepared, for a task that failed before it read the run."""
    with suppress(LwfedError):  # the store may be what failed
        run = runs.find_run(session.store, session.run_id)
        if run is not None:
            session.track(run, part=NO_STAGE).start(run.to_values())
