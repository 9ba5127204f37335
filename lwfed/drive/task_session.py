"""What a task of a pipeline holds while it works: the run's name, its store and launcher, and who is told of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

from lwfed import environment
from lwfed.drive.console import make_console
from lwfed.drive.display import Display
from lwfed.drive.session import driving, ending_on_terminate
from lwfed.drive.task_resources import with_resources
from lwfed.drive.trackers import NO_STAGE, make_trackers
from lwfed.report.page import render
from lwfed.run import runs
from lwfed.run.launcher import Emit, Launcher
from lwfed.run.specs import unpack_spec
from lwfed.spec.run import RunSpec
from lwfed.store import paths
from lwfed.store.opening import open_store
from lwfed.store.protocol import Store
from lwfed.tracking.protocol import Trackers
from lwfed.types.canonical import digest_of
from lwfed.types.errors import LwfedError


class InMlflow(NamedTuple):
    """A run as MLflow has it.

    Attributes:
        address: Of its page; empty where MLflow is off, has no pages or did not answer.
        model: The registered model as `name/version`; empty where none is registered.
    """

    address: str = ""
    model: str = ""


class Session(NamedTuple):
    """What a task works with.

    Attributes:
        spec: The experiment.
        run_id: The run.
        store: Where it is.
        launcher: For what others compute.
        emit: Shows what happens.
        track: Makes the trackers of (run, stage), and tells them that it is at work.
        mlflow: Closes the trackers; returns what became of the run in MLflow.
    """

    spec: RunSpec
    run_id: str
    store: Store
    launcher: Launcher
    emit: Emit
    track: Callable[..., Trackers]
    mlflow: Callable[[], InMlflow]


@contextmanager
def working(spec: str, store: str, *, resources: Mapping[str, Any] | None = None) -> Iterator[Session]:
    """Opens what a task needs, and closes it; shows progress as plain lines, which are the task's log.

    Args:
        spec: What `pack_spec` gave.
        store: The store's URI.
        resources: See `with_resources`.

    Raises:
        LwfedError: The store, the spec in it or the cluster cannot be had.
    """
    opened = open_store(store)
    values = with_resources(unpack_spec(spec, store=opened), resources)
    run_id = run_id_of(values)
    display = Display(make_console(), total_rounds=sum(values.stages.rounds))
    made: list[tuple[Trackers, Any]] = []

    def track(run: runs.Run, *, stage: int = NO_STAGE) -> Trackers:
        found, mlflow = make_trackers(run, values.tracking, store=opened, warn=warn_by(display), stage=stage)
        found.start(run)
        made.append((found, mlflow))
        return found

    def in_mlflow() -> InMlflow:
        for found, _ in made:
            found.close()
        last = next((mlflow for _, mlflow in reversed(made) if mlflow is not None), None)
        return InMlflow() if last is None else InMlflow(last.address(), last.status.model or "")

    with ending_on_terminate(), display, driving(values, run_id=run_id, store=opened) as launcher:
        try:
            yield Session(values, run_id, opened, launcher, display, track, in_mlflow)
        except LwfedError as error:
            with suppress(LwfedError):  # the store may be what failed
                run = None if made else opened.read_ref(paths.run(run_id))
                if run is not None:
                    track(run)
            for found, _ in made:
                found.fail(str(error))
            raise
        finally:
            for found, _ in made:
                found.close()


def run_id_of(spec: RunSpec) -> str:
    """Names the run that this process works on.

    Returns:
        `LWFED_RUN_ID`; else the spec's name with the first characters of the pipeline run's id (`KFP_RUN_ID`); else
        with those of the spec's digest.
    """
    named = environment.run_id()
    if named:
        return named
    tail = environment.kfp_run_id() or digest_of(spec.model_dump(mode="json"))
    return f"{spec.name}-{tail[:8]}"


def page(session: Session, run: runs.Run) -> str:
    """Returns the report of what is committed so far, with the address of the run in MLflow."""
    stages, rounds = runs.history(session.store, run)
    address = session.mlflow().address
    return render(run, stages, rounds, links={"MLflow": address} if address else {})


def telling(emit: Emit, trackers: Trackers) -> Emit:
    """Gives an emit that tells the trackers of rounds and stages too."""

    def tell(kind: str, values: dict[str, Any]) -> None:
        emit(kind, values)
        if kind == "round":
            trackers.round(values)
        elif kind == "stage":
            trackers.stage(values)

    return tell


def warn_by(display: Display) -> Callable[[str], None]:
    """Gives what shows a warning."""
    return lambda line: display("warning", {"message": line})
