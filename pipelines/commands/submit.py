"""What `lwfed submit` does: a compiled experiment becomes a run on the cluster, or a schedule of runs."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lwfed.formats import bytes_text
from lwfed.run.parent import Parent
from lwfed.spec.load import build_spec, to_values
from lwfed.spec.run import RunSpec
from lwfed.types.errors import SpecError
from pipelines.client.connection import Access, Kfp, connect
from pipelines.client.pace import USUAL, Pace
from pipelines.client.runs import KnownRun, run_name
from pipelines.client.upload import Version, ensure_experiment, ensure_version
from pipelines.commands.screen import Screen
from pipelines.commands.wait import settle
from pipelines.compile import compile_pipeline, for_cluster, size_warning


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """What is submitted, and how.

    Attributes:
        spec: The experiment.
        stages: The stages to train; None: all of them.
        parent: The run it starts from, and the first stage it trains; None for none.
        fresh: Train again, even where equal work is committed.
        cache: Whether Kubeflow Pipelines may skip tasks they know.
        name: The run's name in the UI; None: the experiment's, with the time.
        experiment: The experiment it belongs to; None: `tracking.experiment`.
        cron: When to run again and again; None: once, now.
        service_account: Whose rights the tasks have; None: the installation's default.
        pipeline_root: Where artifacts of the pipeline go; None: the installation's default.
        mlflow_plugin: Whether Kubeflow's MLflow plugin puts the run into `tracking.experiment`; None: as installed.
    """

    spec: RunSpec
    stages: Sequence[int] | None = None
    parent: Parent | None = None
    fresh: bool = False
    cache: bool = True
    name: str | None = None
    experiment: str | None = None
    cron: str | None = None
    service_account: str | None = None
    pipeline_root: str | None = None
    mlflow_plugin: bool | None = None


def submit_run(access: Access, wanted: Submission, *, screen: Screen, wait: bool, pace: Pace = USUAL) -> None:
    """Compiles an experiment, uploads it unless it is known, and starts a run of it, or a schedule.

    Args:
        access: The server.
        wanted: What and how.
        screen: Where to say so.
        wait: Follow the run to its end.
        pace: How often to look, and how long to wait.

    Raises:
        SpecError: The experiment cannot run on a cluster, or a schedule is to be waited for.
        LwfedError: The server refuses or does not answer; with `wait`, the run's own error.
    """
    cron = None if wanted.cron is None else cron_of(wanted.cron)
    if cron is not None and wait:
        raise SpecError("a schedule has no end to wait for", remedy="leave --wait or --cron out")
    spec = for_cluster(wanted.spec)
    if access.namespace is None and "namespace" in wanted.spec.kubernetes.model_fields_set:
        access = replace(access, namespace=spec.kubernetes.namespace)
    kfp = connect(access, namespace=spec.kubernetes.namespace)
    if kfp.namespace is not None:  # Jobs go where the tasks are: a task has no rights in another namespace
        spec = build_spec(to_values(spec), overrides=[f"kubernetes.namespace={kfp.namespace}"])
    with tempfile.TemporaryDirectory() as folder:
        compiled = compile_pipeline(
            spec, Path(folder) / "pipeline.yaml", stages=wanted.stages, parent=wanted.parent, fresh=wanted.fresh,
            cache=wanted.cache,
        )  # fmt: skip
        version = ensure_version(kfp, compiled)
    name = wanted.name or f"{spec.name} {datetime.now(UTC):%Y-%m-%d %H:%M:%S}"
    experiment = wanted.experiment or spec.tracking.experiment
    experiment_id = ensure_experiment(kfp, experiment)
    after = f", from {wanted.parent[0]}" if wanted.parent else ""
    record: dict[str, Any] = {
        "experiment_id": experiment_id,
        "display_name": name,
        "description": f"lwfed {spec.strategy}{after}: {'; '.join(compiled.titles)}"[:250],
    }
    run_id = _start(kfp, version, record, wanted=wanted, cron=cron)
    known = "known already" if version.reused else "uploaded"
    screen.say(f"{version.name}  {bytes_text(compiled.file_bytes)}, {len(compiled.titles)} stages, {known}")
    if (warning := size_warning(compiled)) is not None:
        screen.say(warning)
    values: dict[str, Any] = {
        "name": name,
        "namespace": kfp.namespace,
        "experiment": experiment,
        "experiment_id": experiment_id,
        "pipeline_id": version.pipeline_id,
        "version": version.name,
        "version_id": version.version_id,
        "version_reused": version.reused,
        "stages": compiled.titles,
        "file_bytes": compiled.file_bytes,
        "workflow_bytes": compiled.object_bytes,
    }
    if cron is not None:
        url = kfp.page(f"recurringrun/details/{run_id}")
        screen.say(f"runs at `{cron}` (seconds first)")
        screen.say(url or f"lwfed schedules {run_id[:8]}")
        screen.result({"recurring_run_id": run_id, "cron": cron, "url": url, **values})
        return
    run = KnownRun(
        kfp=kfp,
        id=run_id,
        namespace=kfp.namespace or spec.kubernetes.namespace,
        name=run_name(spec, run_id),
        store=spec.store.uri,
        tasks=compiled.tasks,
    )
    settle(run, line=f"{run.title} is started", values=values, screen=screen, wait=wait, pace=pace)


def cron_of(text: str) -> str:
    """Returns an expression of six fields, as Kubeflow Pipelines want it; five, as cron has them, get second 0.

    Raises:
        SpecError: It has another number of fields.
    """
    fields = text.split()
    if len(fields) not in (5, 6):
        raise SpecError(
            f"`{text}` is no schedule: {len(fields)} fields", remedy='write five or six, such as --cron "0 3 * * 1"'
        )
    return " ".join(["0", *fields][-6:])


def _start(kfp: Kfp, version: Version, record: dict[str, Any], *, wanted: Submission, cron: str | None) -> str:
    """Starts a run, or a schedule of runs; returns its id. kfp's own methods for it know no plugins."""
    import kfp_server_api as api

    if wanted.mlflow_plugin is not None:
        experiment = {"experiment_name": wanted.spec.tracking.experiment}
        record["plugins_input"] = {"mlflow": experiment if wanted.mlflow_plugin else {"disabled": True}}
    record |= {
        "pipeline_version_reference": api.V2beta1PipelineVersionReference(
            pipeline_id=version.pipeline_id, pipeline_version_id=version.version_id
        ),
        "runtime_config": api.V2beta1RuntimeConfig(parameters={}, pipeline_root=wanted.pipeline_root),
        "service_account": wanted.service_account,
    }
    if cron is None:
        create = kfp.client._run_api.run_service_create_run
        run = kfp.call(create, about=f"the run {record['display_name']}", run=api.V2beta1Run(**record))
        return str(run.run_id)
    schedule = api.V2beta1RecurringRun(
        **record,
        mode=api.RecurringRunMode.ENABLE,
        max_concurrency="1",
        no_catchup=True,
        trigger=api.V2beta1Trigger(cron_schedule=api.V2beta1CronSchedule(cron=cron)),
    )
    create = kfp.client._recurring_run_api.recurring_run_service_create_recurring_run
    return str(kfp.call(create, about=f"the schedule {cron}", recurring_run=schedule).recurring_run_id)
