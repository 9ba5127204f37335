"""One way to train: every command that trains looks first whether the work is committed, then drives the same run."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from rich.console import Console

from lwfed import environment
from lwfed.catalog.launcher import launcher_kind
from lwfed.drive.display import Display
from lwfed.drive.trackers import is_told, make_trackers
from lwfed.run import runs
from lwfed.run.runs import Options
from lwfed.spec.run import RunSpec
from lwfed.store.protocol import Store
from lwfed.types.errors import LwfedError


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
    drafted: dict[str, Any] | None
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
    return Wanted(spec, replace(options, run_id=drafted["run_id"]), drafted=drafted, done=done)


def train(
    wanted: Wanted, *, store: Store, console: Console, go_on: str | None = None, last_stage: int | None = None
) -> dict[str, Any]:
    """Trains what is not committed of a run, shows how it goes, and tells the trackers.

    Args:
        wanted: What `look_up` gave.
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
        from lwfed.drive.session import ending_on_terminate
    with ending_on_terminate():
        return _drive(wanted, store=store, console=console, go_on=go_on, last_stage=last_stage)


def _drive(
    wanted: Wanted, *, store: Store, console: Console, go_on: str | None, last_stage: int | None
) -> dict[str, Any]:
    from lwfed.drive.session import client_cache, driving
    from lwfed.drive.tell_finish import tell_finish
    from lwfed.run.tasks import RunTask
    from lwfed.steps.experiment import place_of, run_stages
    from lwfed.steps.prepare import prepare
    from lwfed.steps.prepare_there import prepare_there

    spec = wanted.spec
    run_id = wanted.options.run_id or ""
    with (
        Display(console, total_rounds=sum(spec.stages.rounds)) as display,
        driving(spec, run_id=run_id, store=store) as launcher,
    ):
        if wanted.drafted is None:
            run = prepare_there(spec, options=wanted.options, launcher=launcher, store=store, emit=display)
        else:
            run = prepare(wanted.drafted, store=store, emit=display, cache=environment.cache_folder())
        trackers, mlflow = make_trackers(
            run, spec.tracking, store=store, warn=lambda line: display("warning", {"message": line})
        )
        told: dict[str, Callable[[dict[str, Any]], None]] = {
            "run": trackers.start,
            "round": trackers.round,
            "stage": trackers.stage,
        }

        def emit(kind: str, values: dict[str, Any]) -> None:
            display(kind, values)
            if kind in told:
                told[kind](values)

        try:
            cache = None if launcher.remote else client_cache(store)
            summary = run_stages(
                run, launcher=launcher, store=store, emit=emit, cache=cache, last_stage=last_stage
            )  # fmt: skip
            task = RunTask(store=store.uri, run_id=run_id, place=place_of(run, cache=None))
            launcher.server("finish", task, emit=emit)
            tell_finish(run, summary, store=store, trackers=trackers)
        except (LwfedError, KeyboardInterrupt) as error:
            trackers.fail(str(error) or "interrupted", cancelled=isinstance(error, KeyboardInterrupt))
            if isinstance(error, KeyboardInterrupt):
                again = go_on or f"lwfed run ... --run-id {run['run_id']}"
                console.print(f"interrupted; go on with: {again}", highlight=False, soft_wrap=True)
            raise
        finally:
            trackers.close()
            if mlflow is not None and not mlflow.status.complete:
                display(
                    "warning", {"message": f"MLflow lacks records; lwfed report {run['run_id']} --mlflow logs them"}
                )
    return summary
