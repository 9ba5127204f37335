"""The place in MLflow where a run is recorded; plain values, so that another process can receive them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

MODEL_CHARS = 256
"""Longest name of a registered model that MLflow's databases keep."""


@dataclass(frozen=True, slots=True)
class Target:
    """The place in MLflow where a run is recorded.

    Attributes:
        uri: The tracking store, absolute: `sqlite:////folder/mlflow.db`, `http://host:port` ...
        experiment: The experiment's name.
        adopted_run_id: The run that the platform opened for this process; lwfed logs into it and never ends it.
        parent_run_id: The run of the whole experiment, if another process made it.
        group: The sweep that the experiment is a trial of; its run is the parent of all trials'.
        stage: This process's part of the experiment. None: all of it; the adopted run is the experiment's. s: stage s;
            the adopted run is that stage's. 0: another task (it prepares, evaluates or reports); the adopted run is the
            task's, and the platform's run above it is the experiment's.
        ui: URL of MLflow's pages; None: `uri`.
        pipeline_run_id: The pipeline run of which this process is a task.
        pipeline_ui: URL of Kubeflow Pipelines' pages; empty if unknown.
        register_as: The registered model's name; None: made of the experiment's name and the run's.
        system_metrics_s: Seconds between samples of CPU, memory, disk, network and GPU; 0: none.
    """

    uri: str
    experiment: str = "lwfed"
    adopted_run_id: str | None = None
    parent_run_id: str | None = None
    group: str | None = None
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
        folder: The folder for relative paths.

    Returns:
        The same store; other kinds of URI unchanged.
    """
    path = sqlite_path(uri)
    return uri if path is None else f"sqlite:///{folder.absolute() / path}"


def model_name(target: Target, *, run: str) -> str:
    """Returns the name of a run's registered model; MLflow allows neither `/` nor `:` in one that lwfed makes."""
    return target.register_as or re.sub(r"[/:]", "-", f"{target.experiment}-{run}")[:MODEL_CHARS]


def artifact_location(uri: str, *, experiment: str) -> str | None:
    """Returns the place of an experiment's artifacts: next to a sqlite file, else None, the server's own choice."""
    path = sqlite_path(uri)
    if path is None:
        return None
    slug = re.sub(r"[^A-Za-z0-9._-]+", "-", experiment).strip("-.") or "experiment"
    return (path.absolute().parent / "mlartifacts" / slug).as_uri()


def sqlite_path(uri: str) -> Path | None:
    """Returns the file of a sqlite store, or None if the store is not a sqlite file."""
    matched = re.match(r"sqlite(?:\+\w+)?:///(?P<path>[^?]+)", uri)
    return Path(matched["path"]) if matched and matched["path"] != ":memory:" else None
