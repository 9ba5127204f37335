"""Opens a run's trackers: always the log in its store, and a follower that copies it to MLflow if the spec says so."""

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
from lwfed.tracking.jsonlines import JsonLines, read_events, without_restarts
from lwfed.tracking.mlflow.target import Target, absolute_uri
from lwfed.tracking.protocol import Record, Tracker, event_of
from lwfed.types.errors import SpecError
from lwfed.types.records import RunRecord, RunSummary

if TYPE_CHECKING:
    from lwfed.tracking.mlflow.process import MlflowFollower

NO_STAGE = 0
"""The part of a process that works on a run but on none of its stages: it prepares, evaluates or reports."""


def make_trackers(
    run: RunRecord, spec: TrackingSpec, *, store: Store, warn: Callable[[str], None], stage: int | None = None
) -> tuple[JsonLines, MlflowFollower | None]:
    """Opens a run's log for this process. The log's start also records what earlier processes could not.

    Args:
        run: The run.
        spec: The place in MLflow; a uri of None switches MLflow off.
        store: The run's store, which has the log.
        warn: Called with one line if MLflow does not answer.
        stage: The part of the run that this process has: s for stage s, `NO_STAGE` for no stage, None for the whole
            run. A process with a part ends the run only by `finish`, or with `NO_STAGE` also by `fail`.

    Returns:
        The log, and its follower for MLflow; None if MLflow is off.
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
    missed = _missed(run, without_restarts(read_events(old)), store=store)
    log = JsonLines(append=lambda data: store.append(key, data), read=lambda: old, follower=mlflow, missed=missed)
    return log, mlflow


def target_of(spec: TrackingSpec, *, stage: int | None = None) -> Target | None:
    """Returns the place of a run in MLflow; the platform's `MLFLOW_TRACKING_URI` takes precedence over the spec."""
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
    """Brings MLflow up to date with a run's log; logs nothing twice. Imports MLflow.

    Raises:
        SpecError: MLflow is switched off in the spec.
    """
    target = target_of(spec)
    if target is None:
        raise SpecError(f"MLflow is switched off in run {run.run_id}", remedy="set tracking.uri when you start a run")
    environment.lend_home()
    from lwfed.tracking.mlflow.delivery import replay_to_mlflow

    events = read_events(store.read_log(paths.events(run.run_id)))
    status = replay_to_mlflow([_with_local_files(event, run, store=store) for event in events], target=target)
    return {"uri": target.uri, **status.values()}


def record_finish(run: RunRecord, summary: RunSummary, *, store: Store, tracker: Tracker) -> None:
    """Records a run's end, with the files that the step `finish` wrote.

    Args:
        run: The run.
        summary: Its summary.
        store: The run's store.
        tracker: Receives the record.
    """
    run = runs.read_run(store, run.run_id)  # with the stages recorded meanwhile
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
    """Returns the URI from which a stage's checkpoint is served: `<store URI>#<stage key>`."""
    return f"{store}#{key}"


def has_finish(run_id: str, *, store: Store) -> bool:
    """Whether a run's log records its finish, so that it was not killed between its last stage and its report."""
    end = end_of(read_events(store.read_log(paths.events(run_id))))
    return end is not None and end["event"] == "finish"


def _missed(run: RunRecord, logged: Sequence[Record], *, store: Store) -> list[Record]:
    """Returns the rounds and stages of earlier processes, in order, including stages that no process logged.

    A pipeline skips the task of a stage whose result it already knows, so no process records that stage.
    """
    of_log: dict[int, list[Record]] = {}
    for event in logged:
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


def _with_local_files(event: Record, run: RunRecord, *, store: Store) -> Record:
    """Returns an event with the paths of its files on this machine; another machine may have recorded it."""
    if event["event"] != "finish":
        return event
    return {**event, "artifacts": [str(path) for path in _files_of(run, store=store)]}


def _files_of(run: RunRecord, *, store: Store) -> list[Path]:
    """Returns the report and figures of a run as files on this machine."""
    keys = [paths.report(run.run_id), *store.list(paths.figure(run.run_id, ""))]
    return [store.fetch(key) for key in keys if store.has(key)]
