"""Records a sweep in MLflow: one run above those of its trials, with the best trial's values and metrics."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path

from lwfed.tracking.mlflow.place import check_place, reason_of
from lwfed.tracking.mlflow.target import Target


def record_sweep(
    target: Target, *, params: Mapping[str, str], metrics: Mapping[str, float], files: tuple[Path, ...]
) -> str | None:
    """Writes a sweep's result to its run, and ends it. Imports MLflow.

    Args:
        target: The place in MLflow; `group` is the sweep's name.
        params: The best trial's values.
        metrics: The best trial's metrics.
        files: Artifacts.

    Returns:
        Why MLflow does not take it; None if it does. A failure of MLflow is no failure of the sweep.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # warnings of MLflow and SQLAlchemy for their own developers
            check_place(target.uri)
            from mlflow import MlflowClient

            from lwfed.tracking.mlflow.entries import log
            from lwfed.tracking.mlflow.runs import RunTree

            client = MlflowClient(target.uri)
            tree = RunTree(client, target, live=True)
            run_id = tree.group(tree.experiment())
            log(client, run_id, metrics=metrics, tags={f"best.{name}": value for name, value in params.items()})
            for file in files:
                client.log_artifact(run_id, str(file))
            client.set_terminated(run_id)
    except Exception as error:  # servers', databases' and libraries' own types
        return reason_of(error)
    return None
