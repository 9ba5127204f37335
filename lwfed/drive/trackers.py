"""Opens a run's trackers: always the log in its store, and a follower that copies it to MLflow if the spec says so."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lwfed import environment
from lwfed.run import runs
from lwfed.spec.federation import TrackingSpec
from lwfed.store import paths
from lwfed.store.protocol import Store
from lwfed.tracking.ending import end_of
from lwfed.tracking.jsonlines import JsonLines, Record, event_of, event_of_finish, read_events, without_restarts
from lwfed.tracking.mlflow.delivery import replay_to_mlflow
from lwfed.tracking.mlflow.process import MlflowFollower
from lwfed.tracking.mlflow.sweeps import record_sweep
from lwfed.tracking.mlflow.target import Target, absolute_uri
from lwfed.types.errors import NotFoundError, SpecError
from lwfed.types.records import RunRecord, RunSummary

if TYPE_CHECKING:  # matplotlib takes a second
    from lwfed.report.sweep import SweepResult

NO_STAGE = 0
"""The part of a process that works on a run but on none of its stages: it prepares, evaluates or reports."""


def start_trackers(
    run: RunRecord, spec: TrackingSpec, *, store: Store, warn: Callable[[str], None], part: int | None
) -> tuple[JsonLines, MlflowFollower | None]:
    """Opens a run's log for this process, and records its start and what earlier processes could not record.

    Args:
        run: The run.
        spec: The place in MLflow; a uri of None switches MLflow off.
        store: The run's store, which has the log.
        warn: Called with one line if MLflow does not answer.
        part: The part of the run that this process has: s for stage s, `NO_STAGE` for no stage, None for the whole
            run. A process with a part ends the run only by `finish`, or with `NO_STAGE` also by `fail`.

    Returns:
        The log, and its follower for MLflow; None if MLflow is off.
    """

    def on_warning(line: str) -> None:
        warn(line)
        log.warn(line)

    key = paths.events(run.run_id)
    old = store.read_log(key)
    target = target_of(spec, stage=part)
    mlflow = None if target is None else MlflowFollower(target, on_warning=on_warning)
    log = JsonLines(lambda data: store.append(key, data), old=old, follow=None if mlflow is None else mlflow.send)
    log.record(event_of("start", run.to_values()))
    for event in _missed(run, read_events(old), store=store):
        log.record(event)
    return log, mlflow


def target_of(spec: TrackingSpec, *, stage: int | None = None) -> Target | None:
    """Returns the place of a run in MLflow; None if MLflow is off. See `place_in_mlflow`."""
    uri = place_in_mlflow(spec)
    if uri is None:
        return None
    return Target(
        uri=uri,
        experiment=spec.experiment,
        adopted_run_id=environment.mlflow_adopted_run_id(),
        parent_run_id=environment.mlflow_parent_run_id(),
        group=environment.mlflow_group(),
        stage=stage,
        ui=spec.ui,
        pipeline_run_id=environment.kfp_run_id(),
        pipeline_ui=environment.kfp_ui() or "",
        register_as=spec.register_as,
    )


def place_in_mlflow(spec: TrackingSpec) -> str | None:
    """Returns the tracking store, absolute: `MLFLOW_TRACKING_URI`, else the spec's; None if MLflow is off.

    Raises:
        SpecError: `MLFLOW_TRACKING_URI` names no tracking store.
    """
    named = environment.mlflow_uri()
    if spec.uri is None:
        return None
    if named is not None:
        try:
            TrackingSpec(uri=named)
        except ValueError:
            raise SpecError(
                f"MLFLOW_TRACKING_URI={named} is no tracking store of MLflow",
                remedy="set it to sqlite:///FILE or http://HOST:PORT, or unset it",
            ) from None
    return absolute_uri(named or spec.uri, folder=Path.cwd())


def replay_log(run: RunRecord, spec: TrackingSpec, *, store: Store) -> dict[str, Any]:
    """Brings MLflow up to date with a run's log; logs nothing twice. Imports MLflow.

    Raises:
        SpecError: MLflow is switched off in the spec.
        NotFoundError: The run has no log.
    """
    target = target_of(spec)
    if target is None:
        raise SpecError(f"MLflow is switched off in run {run.run_id}", remedy="set tracking.uri when you start a run")
    environment.lend_home()
    events = read_events(store.read_log(paths.events(run.run_id)))
    if not any(event["event"] == "start" for event in events):
        raise NotFoundError(f"run {run.run_id} has no records yet", remedy=environment.resume_hint())
    for event in events:
        if event["event"] == "finish":  # another machine may have recorded it, with paths of its own
            event["artifacts"] = [str(path) for path in _files_of(run, store=store)]
    status = replay_to_mlflow(events, target=target)
    return {"uri": target.uri, **asdict(status)}


def record_sweep_of(result: SweepResult, spec: TrackingSpec, *, page: Path) -> str | None:
    """Records a sweep's best trial and its page in MLflow. Returns why it cannot; None if it can, or MLflow is off."""
    target = target_of(spec)
    if target is None or result.best is None:
        return None
    environment.lend_home()
    params = {key: str(value) for key, value in result.best.values.items()}
    return record_sweep(replace(target, group=result.name), params=params, metrics=result.best.metrics, files=(page,))


def record_finish(run: RunRecord, summary: RunSummary, *, store: Store, log: JsonLines) -> None:
    """Records a run's end, with the files that the step `finish` wrote.

    Args:
        run: The run.
        summary: Its summary.
        store: The run's store.
        log: Its log.
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
    log.record(event_of_finish(summary.to_values(), artifacts=_files_of(run, store=store), model=model))


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
    events = without_restarts(logged)
    known = {event["record"]["stage"] for event in events if event["event"] == "stage"}
    stages, rounds = runs.history(store, run.changed(stages=[item for item in run.stages if item.stage not in known]))
    committed = {record.stage for record in stages}
    events += [event_of("round", record.to_values()) for record in rounds if record.stage in committed]
    events += [event_of("stage", record.to_values()) for record in stages]
    return [event for event in without_restarts(events) if event["event"] in ("round", "stage")]


def _files_of(run: RunRecord, *, store: Store) -> list[Path]:
    """Returns the report and figures of a run as files on this machine."""
    keys = [paths.report(run.run_id), *store.list(paths.figure(run.run_id, ""))]
    return [store.fetch(key) for key in keys if store.has(key)]
