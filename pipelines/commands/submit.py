"""`lwfed submit`: compiles an experiment and starts it as a run on the cluster, or as a schedule of runs."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

from typer import Option

from lwfed.cli.options import Fresh, Json, Spec
from lwfed.formats import bytes_text
from lwfed.run.parent import parse_parent
from lwfed.spec.load import build_spec, load_spec, to_values
from lwfed.store.opening import open_store
from lwfed.types.errors import SpecError, UnreachableError
from pipelines.client.connection import Access, Kfp, connect
from pipelines.client.pace import Pace, usual_pace
from pipelines.client.runs import KnownRun, run_name
from pipelines.client.upload import Version, ensure_experiment, ensure_version
from pipelines.commands.screen import Screen, make_screen
from pipelines.commands.wait import report_and_wait
from pipelines.compile import compile_pipeline, for_cluster, size_warning
from pipelines.options import START_TIMEOUT_S, Stages, StartFrom, StartTimeout, Wait
from pipelines.stages import Work, check_parent, count_stages, parse_stages, pick_stages


@dataclass(frozen=True, slots=True)
class RunOptions:
    """The options of a run; each attribute is an option of the command."""

    name: Annotated[str | None, Option("--name", metavar="TEXT", help="The run's name in the UI.")] = None
    experiment: Annotated[
        str | None, Option("--experiment", metavar="NAME", help="The run's experiment; default: tracking.experiment.")
    ] = None
    cache: Annotated[bool, Option(help="Whether Kubeflow Pipelines may take results from its cache.")] = True
    cron: Annotated[str | None, Option("--cron", metavar="EXPR", help='Run on a schedule, such as "0 3 * * 1".')] = None
    service_account: Annotated[
        str | None, Option("--service-account", metavar="SA", help="The tasks' service account.")
    ] = None
    pipeline_root: Annotated[
        str | None, Option("--pipeline-root", metavar="URI", help="The folder for the pipeline's artifacts.")
    ] = None
    mlflow_plugin: Annotated[
        bool | None,
        Option(
            "--mlflow-plugin/--no-mlflow-plugin",
            help="Whether Kubeflow's own MLflow plugin logs the run to tracking.experiment.",
        ),
    ] = None


def submit(
    spec: Spec = None,
    override: Annotated[
        list[str] | None, Option("-o", "--override", "--set", metavar="KEY=VALUE", help="Change a key: -o seed=1.")
    ] = None,
    wait: Wait = False,
    start_timeout: StartTimeout = START_TIMEOUT_S,
    stages: Stages = None,
    start_from: StartFrom = None,
    fresh: Fresh = False,
    *,
    options: RunOptions,
    access: Access,
    as_json: Json = False,
) -> None:
    """Run an experiment on a cluster with Kubeflow Pipelines.

    Creates the experiment and the pipeline if necessary, uploads the compiled pipeline unless the server has it, and
    starts a run. With --wait it follows the run and ends with its exit code.
    """
    where = [] if access.namespace is None else [f"kubernetes.namespace={access.namespace}"]
    values = load_spec(spec, overrides=[*where, *(override or [])])
    count, parent = count_stages(values), parse_parent(start_from)
    chosen = pick_stages(parse_stages(stages, count=count), count=count, parent=parent)
    screen = make_screen(as_json)
    if parent is not None:
        try:
            check_parent(open_store(values.store.uri), parent)
        except UnreachableError as error:
            screen.say(f"{error.problem}; the cluster will check that {parent[0]} has stage {parent[1] - 1}")
    pace = usual_pace(start_timeout_s=start_timeout)
    work = Work(values, stages=chosen, parent=parent, fresh=fresh)
    submit_work(access, work, options=options, screen=screen, wait=wait, pace=pace)


def submit_work(access: Access, work: Work, *, options: RunOptions, screen: Screen, wait: bool, pace: Pace) -> None:
    """Compiles an experiment, uploads it unless the server has it, and starts a run or a schedule.

    Args:
        access: The server.
        work: The work to train.
        options: The options of the run.
        screen: The command's output.
        wait: Follow the run to its end.
        pace: How often to poll, and how long to wait.

    Raises:
        SpecError: The experiment cannot run on a cluster, or `wait` is set for a schedule.
        LwfedError: The server refuses or does not answer; with `wait`, the run's own error.
    """
    cron = None if options.cron is None else _cron_of(options.cron)
    if cron is not None and wait:
        raise SpecError("a schedule has no end to wait for", remedy="omit --wait or --cron")
    spec = for_cluster(work.spec)
    if access.namespace is None and "namespace" in work.spec.kubernetes.model_fields_set:
        access = replace(access, namespace=spec.kubernetes.namespace)
    kfp = connect(access, namespace=spec.kubernetes.namespace)
    if kfp.namespace is not None:  # Jobs run in the tasks' namespace, since tasks have no rights in another
        spec = build_spec(to_values(spec), overrides=[f"kubernetes.namespace={kfp.namespace}"])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pipeline.yaml"
        compiled = compile_pipeline(replace(work, spec=spec), path, cache=options.cache)
        version = ensure_version(kfp, compiled)
    name = options.name or f"{spec.name} {datetime.now(UTC):%Y-%m-%d %H:%M:%S}"
    experiment = options.experiment or spec.tracking.experiment
    experiment_id = ensure_experiment(kfp, experiment)
    in_mlflow = {"experiment_name": spec.tracking.experiment} if options.mlflow_plugin else {"disabled": True}
    plugins = None if options.mlflow_plugin is None else {"mlflow": in_mlflow}
    after = f", from {work.parent[0]}" if work.parent else ""
    record: dict[str, Any] = {
        "experiment_id": experiment_id,
        "display_name": name,
        "plugins_input": plugins,
        "description": f"lwfed {spec.strategy}{after}: {'; '.join(compiled.titles)}"[:250],
    }
    run_id = _start(kfp, version, record, options=options, cron=cron)
    known = "already uploaded" if version.reused else "uploaded"
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
    report_and_wait(run, line=f"{run.title} has started", values=values, screen=screen, wait=wait, pace=pace)


def _cron_of(text: str) -> str:
    """Returns a cron expression of six fields, as in Kubeflow Pipelines; cron's five fields get second 0."""
    fields = text.split()
    if len(fields) not in (5, 6):
        raise SpecError(
            f"`{text}` is not a schedule: it has {len(fields)} fields",
            remedy='write five or six, such as --cron "0 3 * * 1"',
        )
    return " ".join(["0", *fields][-6:])


def _start(kfp: Kfp, version: Version, record: dict[str, Any], *, options: RunOptions, cron: str | None) -> str:
    """Starts a run or a schedule of runs; returns its id. kfp's own methods do not support plugins."""
    import kfp_server_api as api

    record |= {
        "pipeline_version_reference": api.V2beta1PipelineVersionReference(
            pipeline_id=version.pipeline_id, pipeline_version_id=version.version_id
        ),
        "runtime_config": api.V2beta1RuntimeConfig(parameters={}, pipeline_root=options.pipeline_root),
        "service_account": options.service_account,
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
