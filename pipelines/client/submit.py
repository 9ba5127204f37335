"""A compiled pipeline becomes a run: experiment, pipeline, version and run, each made only where it is not there yet.

The pipeline's name is constant, because Kubeflow Pipelines keep their cache by it; a version is named by the digest of
what was compiled, so equal submissions share one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from lwfed.types.canonical import digest_of
from lwfed.types.errors import LwfedError, SpecError
from pipelines.client.errors import RefusedError
from pipelines.client.kubeflow import Kfp

PIPELINE = "lwfed-experiment"
DESCRIPTION = "Federated multimodal learning, stage by stage (lwfed)"
EQUALS = "EQUALS"
DIGITS = 12


@dataclass(frozen=True, slots=True)
class Package:
    """A compiled pipeline.

    Attributes:
        path: Its file.
        digest: Of what it says; comments do not count.
    """

    path: Path
    digest: str


@dataclass(frozen=True, slots=True)
class RunOptions:
    """How a run is made.

    Attributes:
        name: Its name in the UI.
        experiment: The experiment it belongs to.
        service_account: Whose rights its tasks have; None: the installation's default.
        pipeline_root: Where its artifacts go; None: the installation's default.
        plugins_input: What plugins of Kubeflow Pipelines are told; None: nothing.
        description: A line for people.
        cron: When to run again and again; None: once, now.
    """

    name: str
    experiment: str
    service_account: str | None = None
    pipeline_root: str | None = None
    plugins_input: Mapping[str, Any] | None = None
    description: str | None = None
    cron: str | None = None


@dataclass(frozen=True, slots=True)
class Version:
    """An uploaded pipeline's version."""

    pipeline_id: str
    version_id: str
    name: str
    reused: bool


def package(path: Path, *, cache: bool = True) -> Package:
    """Reads a compiled pipeline.

    Args:
        path: The file; without `cache` it is written anew.
        cache: Whether Kubeflow Pipelines may take tasks' results from their cache.

    Returns:
        The package, with its digest.
    """
    documents = list(yaml.safe_load_all(path.read_text(encoding="utf-8")))
    if not cache:
        for tasks in _task_tables(documents[0]):
            for task in tasks.values():
                task["cachingOptions"] = {}
        path.write_text(yaml.safe_dump_all(documents, sort_keys=True), encoding="utf-8")
    return Package(path, digest_of(documents))


def cron_of(text: str) -> str:
    """Gives an expression of six fields, as Kubeflow Pipelines want it; five, as cron has them, start at second 0.

    Raises:
        SpecError: It has another number of fields.
    """
    fields = text.split()
    if len(fields) == 5:
        fields = ["0", *fields]
    if len(fields) != 6:
        raise SpecError(
            f"`{text}` is no schedule: {len(fields)} fields", remedy='write five or six, such as --cron "0 3 * * 1"'
        )
    return " ".join(fields)


def ensure_experiment(kfp: Kfp, name: str) -> str:
    """Gives the id of an experiment, which is made where there is none of that name.

    Raises:
        RefusedError: It is archived.
        LwfedError: The server refuses or does not answer.
    """
    import kfp_server_api as api

    service = kfp.client._experiment_api
    found = kfp.call(
        service.experiment_service_list_experiments, about="experiments", filter=named(name), namespace=kfp.namespace
    )
    for experiment in found.experiments or ():
        if experiment.storage_state == "ARCHIVED":
            raise RefusedError(
                f"the experiment {name} is archived", remedy="restore it in the UI, or name --experiment"
            )
        return str(experiment.experiment_id)
    made = kfp.call(
        service.experiment_service_create_experiment,
        about=f"the experiment {name}",
        experiment=api.V2beta1Experiment(display_name=name, namespace=kfp.namespace),
    )
    return str(made.experiment_id)


def ensure_version(kfp: Kfp, compiled: Package, *, name: str) -> Version:
    """Gives the version of a compiled pipeline, which is uploaded where it is not there.

    Args:
        kfp: The server.
        compiled: What to upload.
        name: What people know the version by; its digest is added.
    """
    pipeline_id = _pipeline_id(kfp)
    if pipeline_id is None:
        pipeline_id = _upload_pipeline(kfp, compiled)
    version = f"{name}-{compiled.digest[:DIGITS]}"
    found = _find_version(kfp, pipeline_id, version)
    if found is not None:
        return Version(pipeline_id, found, version, reused=True)
    try:
        uploaded = kfp.call(
            kfp.client._upload_api.upload_pipeline_version,
            str(compiled.path),
            about=f"the pipeline version {version}",
            name=version,
            pipelineid=pipeline_id,
        )
    except LwfedError as error:
        found = _find_version(kfp, pipeline_id, version) if _exists(error) else None
        if found is None:
            raise
        return Version(pipeline_id, found, version, reused=True)
    return Version(pipeline_id, str(uploaded.pipeline_version_id), version, reused=False)


def start(kfp: Kfp, version: Version, *, options: RunOptions) -> tuple[str, str]:
    """Starts a run, or a schedule of runs.

    Returns:
        Its id, and its experiment's.

    Raises:
        SpecError: The schedule or a parameter does not fit.
        LwfedError: The server refuses or does not answer.
    """
    import kfp_server_api as api

    experiment = ensure_experiment(kfp, options.experiment)
    common = {
        "experiment_id": experiment,
        "display_name": options.name,
        "description": options.description,
        "pipeline_version_reference": api.V2beta1PipelineVersionReference(
            pipeline_id=version.pipeline_id, pipeline_version_id=version.version_id
        ),
        "runtime_config": api.V2beta1RuntimeConfig(parameters={}, pipeline_root=options.pipeline_root),
        "service_account": options.service_account,
        "plugins_input": dict(options.plugins_input) if options.plugins_input else None,
    }
    if options.cron is None:
        run = kfp.call(
            kfp.client._run_api.run_service_create_run, about=f"the run {options.name}", run=api.V2beta1Run(**common)
        )
        return str(run.run_id), experiment
    schedule = kfp.call(
        kfp.client._recurring_run_api.recurring_run_service_create_recurring_run,
        about=f"the schedule {options.cron}",
        recurring_run=api.V2beta1RecurringRun(
            **common,
            mode=api.RecurringRunMode.ENABLE,
            max_concurrency="1",
            no_catchup=True,
            trigger=api.V2beta1Trigger(cron_schedule=api.V2beta1CronSchedule(cron=options.cron)),
        ),
    )
    return str(schedule.recurring_run_id), experiment


def _pipeline_id(kfp: Kfp) -> str | None:
    found = kfp.call(
        kfp.client._pipelines_api.pipeline_service_list_pipelines,
        about="pipelines",
        filter=named(PIPELINE),
        namespace=kfp.namespace,
    )
    return next((str(pipeline.pipeline_id) for pipeline in found.pipelines or ()), None)


def _upload_pipeline(kfp: Kfp, compiled: Package) -> str:
    try:
        made = kfp.call(
            kfp.client._upload_api.upload_pipeline,
            str(compiled.path),
            about=f"the pipeline {PIPELINE}",
            name=PIPELINE,
            description=DESCRIPTION,
            namespace=kfp.namespace,
        )
    except LwfedError as error:
        found = _pipeline_id(kfp) if _exists(error) else None  # someone else was faster
        if found is None:
            raise
        return found
    return str(made.pipeline_id)


def _find_version(kfp: Kfp, pipeline_id: str, name: str) -> str | None:
    found = kfp.call(
        kfp.client._pipelines_api.pipeline_service_list_pipeline_versions,
        pipeline_id,
        about="versions of the pipeline",
        filter=named(name),
    )
    return next((str(item.pipeline_version_id) for item in found.pipeline_versions or ()), None)


def named(name: str) -> str:
    return json.dumps({"predicates": [{"operation": EQUALS, "key": "display_name", "stringValue": name}]})


def _exists(error: LwfedError) -> bool:
    return isinstance(error, RefusedError) and (error.status == 409 or "already exist" in error.problem)


def _task_tables(pipeline: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Gives the tables of tasks of a compiled pipeline: the root's, and those of groups such as the exit handler's."""
    dags = [pipeline["root"], *(pipeline.get("components") or {}).values()]
    return [dag["dag"]["tasks"] for dag in dags if "dag" in dag]
