"""Finds, adopts or creates the MLflow run of an experiment.

Only tags decide, so that processes that share nothing but the server find the same runs.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.exceptions import MlflowException

from lwfed import __version__
from lwfed.tracking.mlflow.target import Target, artifact_location

MARK = "global_round"
"""The metric that marks rounds as logged; it is written in the same batch as the round's own metrics."""
OWNER = "lwfed.owner"
"""A tag that is set only at creation: lwfed created a run that has it, and may end it."""
RUN_ID = "lwfed.run_id"
ROLE = "lwfed.role"
"""`run`: a whole experiment; `stage`; `task`: another process of the platform; `attempt`: an earlier `stage`."""
WHOLE = "lwfed.whole"
"""The tag on runs of stages and tasks that names the MLflow run of the whole experiment."""
STAGE = "lwfed.stage"
ADOPTED = "lwfed.adopted"
PARENT = "mlflow.parentRunId"
PIPELINE_RUN = "kfp.pipeline_run_id"
PIPELINE_URL = "kfp.pipeline_run_url"
MAX_DEPTH = 8
"""The most levels to climb from a task's run to the platform's topmost run."""


def experiment_of(client: MlflowClient, target: Target) -> str:
    """Finds or creates the experiment that a target names; restores it if it was deleted."""
    name = target.experiment
    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return str(client.create_experiment(name, artifact_location(target.uri, experiment=name), tags={}))
        except MlflowException:  # another process was quicker
            found = client.get_experiment_by_name(name)
            if found is None:
                raise
    if found.lifecycle_stage == "deleted":
        client.restore_experiment(found.experiment_id)
    return str(found.experiment_id)


def whole_run(client: MlflowClient, target: Target, *, run_id: str, adopted: Run | None, start_ms: int) -> Run:
    """Finds, adopts or creates the run of a whole experiment.

    Args:
        client: The client.
        target: The place in MLflow.
        run_id: lwfed's id of the run.
        adopted: The run that the platform opened for this process.
        start_ms: Start time of a new run, ms since 1970.

    Returns:
        The run that `target.parent_run_id` names; else the adopted run, if this process has the whole experiment; else
        the run with the tag of the run id; else the platform's run above the adopted one; else a new run.
    """
    if target.parent_run_id:
        return client.get_run(target.parent_run_id)
    if adopted is not None and target.stage is None:
        return adopted
    tags = {RUN_ID: run_id, ROLE: "run"}
    experiment = str(adopted.info.experiment_id) if adopted is not None else experiment_of(client, target)
    found = find_run(client, [experiment], tags)
    if found is not None:
        return found
    above = None
    if adopted is not None:
        above = topmost(client, adopted)
        if above is not None and above.data.tags.get(RUN_ID) in (None, run_id):
            return above
    else:  # the platform may have chosen another experiment
        found = find_run(client, [item.experiment_id for item in client.search_experiments()], {**tags, ADOPTED: "yes"})
        if found is not None:
            return found
    nested = {} if above is None else {PARENT: above.info.run_id}  # next to another experiment of the same pipeline
    return make_run(client, experiment, {**tags, **nested}, name=run_id, start_ms=start_ms)


def topmost(client: MlflowClient, run: Run) -> Run | None:
    """Climbs from a task's run to the run of the whole pipeline; None if the task's run has no parent."""
    above = None
    for _ in range(MAX_DEPTH):
        parent = (above or run).data.tags.get(PARENT)
        if parent is None or (above is not None and PIPELINE_RUN in above.data.tags):
            break
        above = client.get_run(parent)
    return above


def find_run(client: MlflowClient, experiments: Sequence[str], tags: Mapping[str, str]) -> Run | None:
    """Returns the newest run that has all the tags, complete with inputs and all tags; None if there is none."""
    query = " and ".join(f"tags.`{key}` = '{value}'" for key, value in tags.items())
    found = client.search_runs(
        list(experiments), filter_string=query, max_results=1, order_by=["attributes.start_time DESC"]
    )
    return client.get_run(found[0].info.run_id) if found else None


def make_run(client: MlflowClient, experiment: str, tags: Mapping[str, str], *, name: str, start_ms: int) -> Run:
    """Creates a run that lwfed owns."""
    source = {"mlflow.source.name": f"lwfed {__version__}", "mlflow.source.type": "LOCAL", OWNER: "lwfed"}
    return client.create_run(experiment, start_time=start_ms, tags={**tags, **source}, run_name=name)


def pipeline_tags(target: Target) -> dict[str, str]:
    """Returns tags that name a run's pipeline run, as Kubeflow's own plugin does.

    The URL is only a path if the address of Kubeflow's pages is unknown.
    """
    run_id = target.pipeline_run_id
    if run_id is None:
        return {}
    return {PIPELINE_RUN: run_id, PIPELINE_URL: f"{target.pipeline_ui.rstrip('/')}/#/runs/details/{run_id}"}


def now_ms() -> int:
    """Returns the current time, ms since 1970."""
    return int(1000 * time.time())
