"""Where a run is recorded: in the log in its store always, and in MLflow, which follows the log if the spec says so."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lwfed import environment
from lwfed.run import runs
from lwfed.spec.federation import TrackingSpec
from lwfed.store import paths
from lwfed.store.protocol import Store
from lwfed.tracking.ending import end_of
from lwfed.tracking.jsonlines import JsonLines, as_it_ended, read_events
from lwfed.tracking.mlflow.target import Target, absolute_uri
from lwfed.tracking.protocol import Record, Tracker, event_of
from lwfed.types.errors import SpecError
from lwfed.types.records import RunRecord, RunSummary

if TYPE_CHECKING:
    from lwfed.tracking.mlflow.process import MlflowFollower

NO_STAGE = 0
"""The part of a process that works on a run and on none of its stages: it prepares, evaluates, reports."""


def make_trackers(
    run: RunRecord, spec: TrackingSpec, *, store: Store, warn: Callable[[str], None], stage: int | None = None
) -> tuple[JsonLines, MlflowFollower | None]:
    """Opens a run's log for this process. Its start also records what earlier processes could not.

    Args:
        run: The run.
        spec: Where in MLflow; a uri of None switches it off.
        store: Where the log is.
        warn: Called with one line when MLflow does not answer.
        stage: The part of the run that this process has: s for that stage, `NO_STAGE` for none, None for all of it.
            A process with a part ends the run only when it says `finish`, or with `NO_STAGE` `fail`.

    Returns:
        The log, and what follows it to MLflow; None where MLflow is off.
    """
    key = paths.events(run.run_id)
    old = store.read_log(key)
    mlflow = None
    target = target_of(spec, stage=stage)
    if target is not None:
        from lwfed.tracking.mlflow.process import MlflowFollower

        def on_warning(line: str) -> None:
            warn(line)
            log.warn(line)

        mlflow = MlflowFollower(target, on_warning=on_warning)
    missed = _missed(run, as_it_ended(read_events(old)), store=store)
    log = JsonLines(append=lambda data: store.append(key, data), read=lambda: old, follower=mlflow, missed=missed)
    return log, mlflow


def target_of(spec: TrackingSpec, *, stage: int | None = None) -> Target | None:
    """Returns where in MLflow a run is recorded; a platform's `MLFLOW_TRACKING_URI` takes precedence over the spec."""
    if spec.uri is None:
        return None
    return Target(
        uri=absolute_uri(environment.mlflow_uri() or spec.uri, folder=Path.cwd()),
        experiment=spec.experiment,
        adopted_run_id=environment.mlflow_adopted_run_id(),
        parent_run_id=environment.mlflow_parent_run_id(),
        stage=stage,
        ui=spec.ui,
        pipeline_run_id=environment.kfp_run_id(),
        pipeline_ui=environment.kfp_ui() or "",
        register_as=spec.register_as,
    )


def replay_log(run: RunRecord, spec: TrackingSpec, *, store: Store) -> dict[str, Any]:
    """Brings MLflow up to date with a run's log; what it has already is not logged twice. Imports MLflow.

    Raises:
        SpecError: MLflow is switched off in the spec.
    """
    target = target_of(spec)
    if target is None:
        raise SpecError(f"MLflow is switched off in run {run.run_id}", remedy="set tracking.uri when it is started")
    from lwfed.tracking.mlflow.delivery import replay_to_mlflow

    events = read_events(store.read_log(paths.events(run.run_id)))
    status = replay_to_mlflow([_with_files_at_hand(event, run, store=store) for event in events], target=target)
    return {"uri": target.uri, **status.values()}


def tell_finish(run: RunRecord, summary: RunSummary, *, store: Store, tracker: Tracker) -> None:
    """Records that a run is over, with what the step `finish` wrote.

    Args:
        run: The run.
        summary: Its summary.
        store: Where it is.
        tracker: Where it is recorded.
    """
    run = runs.read_run(store, run.run_id)  # its stages were noted while it went on
    spec = runs.spec_of(run)
    model = {
        "uri": uri_of(store.uri, run.stages[-1].key),
        "digest": summary.digest,
        "kind": spec.model.objective.kind,
        "modalities": list(spec.model.modalities),
        "classes": run.data.classes,
    }
    tracker.finish(summary.to_values(), artifacts=_files_of(run, store=store), model=model)


def uri_of(store: str, key: str) -> str:
    """Returns the URI by which a stage's checkpoint is served: `<store URI>#<stage key>`."""
    return f"{store}#{key}"


def is_told(run_id: str, *, store: Store) -> bool:
    """Whether a run's log records its finish: it was not killed between its last stage and its report."""
    end = end_of(read_events(store.read_log(paths.events(run_id))))
    return end is not None and end["event"] == "finish"


def _missed(run: RunRecord, told: Sequence[Record], *, store: Store) -> list[Record]:
    """Returns the rounds and stages of earlier processes, in order: those of the log, and stages that none of them ran.

    A pipeline that knows a stage's result already skips its task, and no process records it.
    """
    of_log: dict[int, list[Record]] = {}
    for event in told:
        if event["event"] in ("round", "stage"):
            of_log.setdefault(int(event["record"]["stage"]), []).append(event)
    for item in run.stages:
        events = of_log.get(item.stage, [])
        if any(event["event"] == "stage" for event in events):
            continue
        stages, rounds = runs.history(store, run.changed(stages=[item]))
        if stages:
            of_log[item.stage] = [event_of("round", record.to_values()) for record in rounds]
            of_log[item.stage] += [event_of("stage", record.to_values()) for record in stages]
    return [event for stage in sorted(of_log) for event in of_log[stage]]


def _with_files_at_hand(event: Record, run: RunRecord, *, store: Store) -> Record:
    """Names the files of a run's end as they lie here: another machine may have recorded it."""
    if event["event"] != "finish":
        return event
    return {**event, "artifacts": [str(path) for path in _files_of(run, store=store)]}


def _files_of(run: RunRecord, *, store: Store) -> list[Path]:
    """Returns the report and figures that a run has written, as files of this machine."""
    keys = [paths.report(run.run_id), *store.list(paths.figure(run.run_id, ""))]
    return [store.fetch(key) for key in keys if store.has(key)]
