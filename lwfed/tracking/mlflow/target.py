"""Where in MLflow a run is told; plain values, so that they can be handed to another process."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Target:
    """Where in MLflow a run is told.

    Attributes:
        uri: The tracking store, absolute: `sqlite:////folder/mlflow.db`, `http://host:port` ...
        experiment: The experiment's name.
        adopted_run_id: The run that the platform opened for this process; logged into, never ended.
        parent_run_id: The run of the whole experiment, where another process made it.
        stage: The part this process has. None: all of the experiment, and the adopted run is the experiment's. s: that
            stage; the adopted run is that stage's. 0: one of several processes, and no stage (it prepares, judges,
            reports); the adopted run is a task's, and the platform's run above it the experiment's.
        ui: Where people open MLflow; None: at `uri`.
        pipeline_run_id: The pipeline run that this process is a task of.
        pipeline_ui: Where people open Kubeflow Pipelines; empty where that is not known.
        register_as: The registered model's name; None: the experiment's and the run's.
        system_metrics_s: Seconds between samples of CPU, memory, disk, network and GPU; 0: none.
    """

    uri: str
    experiment: str = "lwfed"
    adopted_run_id: str | None = None
    parent_run_id: str | None = None
    stage: int | None = None
    ui: str | None = None
    pipeline_run_id: str | None = None
    pipeline_ui: str = ""
    register_as: str | None = None
    system_metrics_s: float = 5.0


def absolute_uri(uri: str, *, folder: Path) -> str:
    """Makes the path of a sqlite store absolute.

    Args:
        uri: A tracking store.
        folder: What a relative path is relative to.

    Returns:
        The same store; other kinds of URI as they are.
    """
    path = sqlite_path(uri)
    return uri if path is None else f"sqlite:///{folder.absolute() / path}"


def artifact_location(uri: str, *, experiment: str) -> str | None:
    """Returns the place of an experiment's artifacts: beside a sqlite file, else where the server wants them (None)."""
    path = sqlite_path(uri)
    if path is None:
        return None
    slug = re.sub(r"[^A-Za-z0-9._-]+", "-", experiment).strip("-.") or "experiment"
    return (path.absolute().parent / "mlartifacts" / slug).as_uri()


def sqlite_path(uri: str) -> Path | None:
    """Returns the file of a sqlite store, or None where the store is no sqlite file."""
    matched = re.match(r"sqlite(?:\+\w+)?:///(?P<path>[^?]+)", uri)
    return Path(matched["path"]) if matched and matched["path"] != ":memory:" else None
