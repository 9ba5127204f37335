"""Who is told of a run: the log in its store always, MLflow where the spec names one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lwfed import environment
from lwfed.spec.federation import TrackingSpec
from lwfed.store import paths
from lwfed.store.local import LocalStore
from lwfed.tracking.jsonlines import JsonLines, read_events
from lwfed.tracking.mlflow_target import Target, absolute_uri
from lwfed.tracking.protocol import Trackers
from lwfed.types.errors import SpecError

if TYPE_CHECKING:
    from lwfed.tracking.mlflow_process import MlflowTracker

Run = Mapping[str, Any]


def make_trackers(
    run: Run, spec: TrackingSpec, *, store: LocalStore, warn: Callable[[str], None]
) -> tuple[Trackers, MlflowTracker | None]:
    """Makes the trackers of a run.

    Args:
        run: The run.
        spec: Where in MLflow; a uri of None switches it off.
        store: Where the log is.
        warn: Told in one line when MLflow does not answer.

    Returns:
        All of them, and MLflow's apart, None where it is off.
    """
    key = paths.events(run["run_id"])
    lines = JsonLines(append=lambda data: store.append(key, data), read=lambda: _log(run, store=store))
    target = target_of(spec)
    if target is None:
        return Trackers(lines), None
    from lwfed.tracking.mlflow_process import MlflowTracker

    def on_warning(line: str) -> None:
        warn(line)
        lines.warn(line)

    mlflow = MlflowTracker(target, on_warning=on_warning)
    return Trackers(lines, mlflow), mlflow


def target_of(spec: TrackingSpec) -> Target | None:
    """Gives where in MLflow a run is told. `MLFLOW_TRACKING_URI`, which a platform sets, goes before the spec's uri."""
    if spec.uri is None:
        return None
    return Target(
        uri=absolute_uri(environment.mlflow_uri() or spec.uri, folder=Path.cwd()),
        experiment=spec.experiment,
        adopted_run_id=environment.mlflow_adopted_run_id(),
        parent_run_id=environment.mlflow_parent_run_id(),
        register_as=spec.register_as,
    )


def replay_log(run: Run, spec: TrackingSpec, *, store: LocalStore) -> dict[str, Any]:
    """Brings MLflow up to date with a run's log; what it has already is not logged twice. Imports MLflow.

    Raises:
        SpecError: MLflow is switched off in the spec.
    """
    target = target_of(spec)
    if target is None:
        raise SpecError(f"MLflow is switched off in run {run['run_id']}", remedy="set tracking.uri when it is started")
    from lwfed.tracking.mlflow_delivery import replay_to_mlflow

    status = replay_to_mlflow(read_events(_log(run, store=store)), target=target)
    return {"uri": target.uri, **status.values()}


def is_told(run_id: str, *, store: LocalStore) -> bool:
    """Whether a run's log tells of its end: it was not killed between its last stage and its report."""
    told = False
    for event in read_events(_log({"run_id": run_id}, store=store)):
        if event["event"] in ("start", "finish"):
            told = event["event"] == "finish"
    return told


def _log(run: Run, *, store: LocalStore) -> bytes:
    key = paths.events(run["run_id"])
    return bytes(store.get(key)) if store.has(key) else b""
