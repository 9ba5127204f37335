"""The commands for Kubeflow Pipelines: compile, submit, retry, cancel, logs, schedules, and the rerun on a cluster."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from lwfed.cli.options import Fresh, Json, Spec
from lwfed.formats import bytes_text
from lwfed.plan.strategies import stage_rounds
from lwfed.run.parent import parse_parent
from lwfed.spec.load import load_spec
from lwfed.types.errors import SpecError, UnreachableError
from pipelines.client.connection import Access
from pipelines.client.pace import USUAL
from pipelines.commands.screen import make_screen
from pipelines.compile import compile_pipeline, size_warning
from pipelines.options import KfpRun, Stages, StartFrom, StartTimeout, Wait, with_access
from pipelines.stages import parse_stages, pick_stages

SUFFIXES = (".yaml", ".yml")


def compile_command(
    spec: Spec = None,
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="FILE", help="The file to write; -o is not --set here.")
    ] = Path("pipeline.yaml"),
    override: Annotated[
        list[str] | None, typer.Option("--set", "--override", metavar="KEY=VALUE", help="Change a key: --set seed=1.")
    ] = None,
    stages: Stages = None,
    start_from: StartFrom = None,
    fresh: Fresh = False,
    as_json: Json = False,
) -> None:
    """Write the pipeline of an experiment, for Kubeflow Pipelines' UI or any of its clients.

    The same experiment gives the same bytes. `-o` names the file here; `--set KEY=VALUE` changes a key of the spec.
    """
    if output.suffix not in SUFFIXES:
        remedy = f"--set {output} changes a key" if "=" in str(output) else "name it pipeline.yaml"
        raise SpecError(f"`-o {output}` names no YAML file", remedy=remedy)
    values = load_spec(spec, overrides=override or [])
    parent = parse_parent(start_from)
    count = len(stage_rounds(values.strategy, values.stages.rounds))
    compiled = compile_pipeline(values, output, stages=parse_stages(stages, count=count), parent=parent, fresh=fresh)
    screen = make_screen(as_json)
    written = f"{compiled.path}  {bytes_text(compiled.file_bytes)}, {len(compiled.titles)} stages"
    screen.say(f"{written}, {compiled.pods} pods besides those of clients")
    for title in compiled.titles:
        screen.say(f"  {title}")
    screen.say(f"The Workflow object grows to {bytes_text(compiled.object_bytes)} at most.")
    if (warning := size_warning(compiled)) is not None:
        screen.say(warning)
    screen.result(
        {
            "file": str(compiled.path),
            "file_bytes": compiled.file_bytes,
            "workflow_bytes": compiled.object_bytes,
            "pods": compiled.pods,
            "stages": compiled.titles,
        }
    )


def submit(
    spec: Spec = None,
    override: Annotated[
        list[str] | None,
        typer.Option("-o", "--override", "--set", metavar="KEY=VALUE", help="Change a key: -o seed=1."),
    ] = None,
    wait: Wait = False,
    start_timeout: StartTimeout = USUAL.start_timeout_s,
    name: Annotated[str | None, typer.Option("--name", metavar="TEXT", help="The run's name in the UI.")] = None,
    experiment: Annotated[
        str | None, typer.Option("--experiment", metavar="NAME", help="Its experiment; else tracking.experiment.")
    ] = None,
    stages: Stages = None,
    start_from: StartFrom = None,
    fresh: Fresh = False,
    cache: Annotated[
        bool, typer.Option("--cache/--no-cache", help="Whether Kubeflow Pipelines may skip tasks they know.")
    ] = True,
    cron: Annotated[
        str | None, typer.Option("--cron", metavar="EXPR", help='Run it by a schedule, such as "0 3 * * 1".')
    ] = None,
    service_account: Annotated[
        str | None, typer.Option("--service-account", metavar="SA", help="Whose rights the tasks have.")
    ] = None,
    pipeline_root: Annotated[
        str | None, typer.Option("--pipeline-root", metavar="URI", help="Where artifacts of the pipeline go.")
    ] = None,
    mlflow_plugin: Annotated[
        bool | None,
        typer.Option(
            "--mlflow-plugin/--no-mlflow-plugin",
            help="Have Kubeflow's own MLflow plugin put the run into tracking.experiment, or leave it out of MLflow.",
        ),
    ] = None,
    *,
    access: Access,
    as_json: Json = False,
) -> None:
    """Run an experiment on a cluster with Kubeflow Pipelines.

    Makes the experiment and the pipeline where they are not there, uploads the compiled pipeline unless it is known,
    and starts a run. With --wait it follows the run and ends as the run does.
    """
    from lwfed.store.opening import open_store
    from pipelines.commands.rerun import check_parent
    from pipelines.commands.submit import Submission, submit_run

    where = [] if access.namespace is None else [f"kubernetes.namespace={access.namespace}"]
    values = load_spec(spec, overrides=[*where, *(override or [])])
    parent = parse_parent(start_from)
    count = len(stage_rounds(values.strategy, values.stages.rounds))
    chosen = pick_stages(parse_stages(stages, count=count), count=count, parent=parent)
    screen = make_screen(as_json)
    if parent is not None:
        try:
            check_parent(open_store(values.store.uri), parent)
        except UnreachableError as error:
            screen.say(f"{error.problem}; that {parent[0]} has stage {parent[1] - 1} is left for the cluster to see")
    wanted = Submission(
        spec=values, stages=chosen, parent=parent, fresh=fresh, cache=cache, name=name, experiment=experiment,
        cron=cron, service_account=service_account, pipeline_root=pipeline_root, mlflow_plugin=mlflow_plugin,
    )  # fmt: skip
    submit_run(access, wanted, screen=screen, wait=wait, pace=replace(USUAL, start_timeout_s=start_timeout))


def resubmit(run_id: str, **options: Any) -> None:
    """Trains a run again on the cluster: what `lwfed rerun --endpoint` does; see `commands.rerun.resubmit`."""
    from pipelines.commands import rerun

    rerun.resubmit(run_id, **options)


def retry(
    run: KfpRun,
    wait: Wait = False,
    start_timeout: StartTimeout = USUAL.start_timeout_s,
    *,
    access: Access,
    as_json: Json = False,
) -> None:
    """Start the failed tasks of a pipeline run again; its finished tasks and committed rounds stay."""
    from pipelines.commands.retry import retry_run

    pace = replace(USUAL, start_timeout_s=start_timeout)
    retry_run(access, run, screen=make_screen(as_json), wait=wait, pace=pace)


def cancel(run: KfpRun, *, access: Access, as_json: Json = False) -> None:
    """End a pipeline run and the Jobs of its clients; what is committed stands.

    After Kubeflow's own Terminate the run's exit task deletes the Jobs, a minute or so later where its image can be
    pulled. With a KUBECONFIG this deletes them at once, and again when the run is over, and removes pods that would
    wait for ever.
    """
    from pipelines.commands.cancel import cancel_run

    cancel_run(access, run, screen=make_screen(as_json))


def logs(
    run: KfpRun,
    stage: Annotated[int | None, typer.Option("--stage", metavar="S", help="Only that stage's task.")] = None,
    client: Annotated[
        str | None, typer.Option("--client", metavar="ID", help="The pods of that client, through kubectl's config.")
    ] = None,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Follow it until the run ends; the exit code is the run's own.")
    ] = False,
    whole: Annotated[bool, typer.Option("--all", help="Also what Kubeflow's own launcher wrote.")] = False,
    *,
    access: Access,
) -> None:
    """Print what the tasks of a pipeline run, or the pods of a client, have written.

    Kubeflow Pipelines keep the logs of tasks that have ended. Those of running tasks and of clients' pods come from the
    cluster that KUBECONFIG names.
    """
    from pipelines.commands.logs import client_logs, task_logs

    if client is not None:
        client_logs(access, run, client=client, stage=stage, follow=follow, write=typer.echo)
    else:
        say = make_screen(True).say  # standard output is the logs' own
        task_logs(access, run, stage=stage, follow=follow, write=typer.echo, say=say, whole=whole)


def schedules(
    schedule: Annotated[
        str | None,
        typer.Argument(metavar="SCHEDULE", help="Its id or the first 8 characters, or its name; none: list them."),
    ] = None,
    pause: Annotated[bool, typer.Option("--pause", help="Start no more runs by it.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Start runs by it again.")] = False,
    delete: Annotated[bool, typer.Option("--delete", help="Delete it; its runs stay.")] = False,
    *,
    access: Access,
    as_json: Json = False,
) -> None:
    """List the schedules that `lwfed submit --cron` made, or pause, resume or delete one."""
    from pipelines.commands.schedules import change_schedule, show_schedules

    actions = [name for name, asked in (("pause", pause), ("resume", resume), ("delete", delete)) if asked]
    if not actions:
        show_schedules(access, schedule, screen=make_screen(as_json))
    elif len(actions) == 1 and schedule is not None:
        change_schedule(access, schedule, actions[0], screen=make_screen(as_json))
    else:
        raise SpecError(
            "a change takes one schedule and one of --pause, --resume and --delete",
            remedy="write lwfed schedules SCHEDULE --pause",
        )


COMMANDS: dict[str, Callable[..., Any]] = {
    "compile": compile_command,
    "submit": with_access(submit),
    "retry": with_access(retry),
    "cancel": with_access(cancel),
    "logs": with_access(logs),
    "schedules": with_access(schedules),
}
"""The commands that `lwfed` takes from here."""
