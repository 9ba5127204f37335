"""What `lwfed submit` and `retry` do: one function each, from an access to its last line."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console

from lwfed.drive.console import print_json
from lwfed.formats import bytes_text
from lwfed.spec.load import build_spec, to_values
from lwfed.spec.run import RunSpec
from lwfed.types.errors import SpecError
from pipelines.client.kubeflow import Access, Kfp, connect
from pipelines.client.runs import namespace_of, open_run, retry, run_name
from pipelines.client.submit import RunOptions, cron_of, ensure_version, package, start
from pipelines.client.wait import Awaited, settle
from pipelines.compile import Compiled, compile_pipeline, for_cluster
from pipelines.follow.follow import Pace


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """What is submitted, and how.

    Attributes:
        spec: The experiment.
        stages: The stages to train; None: all of them.
        parent: A run, and the first stage that is trained anew; None for none.
        fresh: Train anew, even where equal work is committed.
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
    parent: tuple[str, int] | None = None
    fresh: bool = False
    cache: bool = True
    name: str | None = None
    experiment: str | None = None
    cron: str | None = None
    service_account: str | None = None
    pipeline_root: str | None = None
    mlflow_plugin: bool | None = None


def submit_run(
    access: Access,
    submission: Submission,
    *,
    console: Console,
    as_json: bool,
    wait: bool,
    pace: Pace | None = None,
) -> None:
    """Compiles an experiment, uploads it unless it is known, and starts a run of it, or a schedule.

    Args:
        access: The server.
        submission: What and how.
        console: For people.
        as_json: Print one JSON object as the last line.
        wait: Follow the run to its end.
        pace: How often to look, and how long to wait; None: as is usual.

    Raises:
        SpecError: The experiment cannot run on a cluster, or a schedule is to be waited for.
        LwfedError: The server refuses or does not answer; with `wait`, the run's own error.
    """
    cron = None if submission.cron is None else cron_of(submission.cron)
    if cron is not None and wait:
        raise SpecError("a schedule has no end to wait for", remedy="leave --wait or --cron out")
    spec = for_cluster(submission.spec)
    if access.namespace is None and _names_namespace(submission.spec):
        access = replace(access, namespace=spec.kubernetes.namespace)
    kfp = connect(access, namespace=spec.kubernetes.namespace)
    spec = _placed(spec, kfp)
    with tempfile.TemporaryDirectory() as folder:
        compiled = _compile(submission, spec, Path(folder))
        version = ensure_version(kfp, package(compiled.path, cache=submission.cache), name=spec.name)
    options = RunOptions(
        name=submission.name or f"{spec.name} {datetime.now(UTC):%Y-%m-%d %H:%M:%S}",
        experiment=submission.experiment or spec.tracking.experiment,
        service_account=submission.service_account,
        pipeline_root=submission.pipeline_root,
        plugins_input=_plugins(submission, spec),
        description=_description(submission, compiled),
        cron=cron,
    )
    run_id, experiment_id = start(kfp, version, options=options)
    say = _sayer(console)
    known = "known already" if version.reused else "uploaded"
    say(f"{version.name}  {bytes_text(compiled.file_bytes)}, {len(compiled.titles)} stages, {known}")
    told: dict[str, Any] = {
        "name": options.name,
        "namespace": kfp.namespace,
        "experiment": options.experiment,
        "experiment_id": experiment_id,
        "pipeline_id": version.pipeline_id,
        "version": version.name,
        "version_id": version.version_id,
        "version_reused": version.reused,
        "stages": list(compiled.titles),
        "file_bytes": compiled.file_bytes,
        "workflow_bytes": compiled.workflow.total_bytes,
    }
    if cron is not None:
        url = kfp.page(f"recurringrun/details/{run_id}")
        say(f"runs at `{cron}` (seconds first)")
        say(url or f"lwfed schedules {run_id[:8]}")
        if as_json:
            print_json({"recurring_run_id": run_id, "cron": cron, "url": url, **told})
        return
    name = run_name(spec, run_id)
    awaited = Awaited(
        run_id=run_id,
        name=name,
        namespace=kfp.namespace or spec.kubernetes.namespace,
        store=spec.store.uri,
        told=told,
    )
    settle(kfp, awaited, line=f"{name} is started", console=console, as_json=as_json, wait=wait, pace=pace)


def retry_run(
    access: Access,
    run: str,
    *,
    console: Console,
    as_json: bool,
    wait: bool,
    pace: Pace | None = None,
) -> None:
    """Starts the failed tasks of a run again.

    Args:
        access: The server.
        run: Any name of the run.
        console: For people.
        as_json: Print one JSON object as the last line.
        wait: Follow the run to its end.
        pace: How often to look, and how long to wait; None: as is usual.

    Raises:
        RefusedError: It has not failed, or Kubeflow Pipelines cannot.
        LwfedError: The server does not answer; with `wait`, the run's own error.
    """
    kfp, found, facts = open_run(access, run)
    retry(kfp, found)
    run_id = str(found.run_id)
    awaited = Awaited(run_id=run_id, name=facts.name, namespace=namespace_of(access, kfp, facts), store=facts.store)
    line = f"{facts.name or run_id} is retried: what has failed starts again"
    settle(kfp, awaited, line=line, console=console, as_json=as_json, wait=wait, pace=pace, again=True)


def _compile(submission: Submission, spec: RunSpec, folder: Path) -> Compiled:
    parent = "" if submission.parent is None else f"{submission.parent[0]}:{submission.parent[1]}"
    return compile_pipeline(
        spec, folder / "pipeline.yaml", stages=submission.stages, parent=parent, fresh=submission.fresh
    )


def _names_namespace(spec: RunSpec) -> bool:
    return "namespace" in spec.kubernetes.model_fields_set


def _placed(spec: RunSpec, kfp: Kfp) -> RunSpec:
    """Puts Jobs where the tasks are: on a multi-user Kubeflow a task has no rights in another namespace."""
    if kfp.namespace is None or kfp.namespace == spec.kubernetes.namespace:
        return spec
    return build_spec(to_values(spec), overrides=[f"kubernetes.namespace={kfp.namespace}"])


def _plugins(submission: Submission, spec: RunSpec) -> dict[str, Any] | None:
    if submission.mlflow_plugin is None:
        return None
    return {"mlflow": {"experiment_name": spec.tracking.experiment} if submission.mlflow_plugin else {"disabled": True}}


def _description(submission: Submission, compiled: Compiled) -> str:
    after = f", from {submission.parent[0]}" if submission.parent else ""
    return f"lwfed {compiled.spec.strategy}{after}: {'; '.join(compiled.titles)}"[:250]


def _sayer(console: Console) -> Any:
    return lambda line: console.print(line, highlight=False, markup=False, soft_wrap=True)
