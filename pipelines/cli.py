"""The commands for Kubeflow Pipelines: compile, submit, retry, cancel, logs, schedules, and the rerun on a cluster."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from lwfed.cli.options import Fresh, Json, Spec
from lwfed.drive.console import make_console
from lwfed.spec.load import build_spec, load_spec
from lwfed.types.errors import NotFoundError, SpecError, UnreachableError
from pipelines.client.options import (
    Authority,
    Cookies,
    Endpoint,
    KfpRun,
    Namespace,
    Stages,
    StartFrom,
    StartTimeout,
    Token,
    TokenEnv,
    TokenFile,
    Wait,
    access_of,
)  # fmt: skip
from pipelines.client.stages import check_parent, parse_parent, parse_stages
from pipelines.compile import compile_command
from pipelines.follow.follow import START_TIMEOUT_S, Pace


def submit(
    spec: Spec = None,
    override: Annotated[
        list[str] | None,
        typer.Option("-o", "--override", "--set", metavar="KEY=VALUE", help="Change a key: -o seed=1."),
    ] = None,
    endpoint: Endpoint = None,
    wait: Wait = False,
    start_timeout: StartTimeout = START_TIMEOUT_S,
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
    namespace: Namespace = None,
    token: Token = None,
    token_file: TokenFile = None,
    existing_token_env: TokenEnv = None,
    cookies: Cookies = None,
    ssl_ca_cert: Authority = None,
    as_json: Json = False,
) -> None:
    """Run an experiment on a cluster with Kubeflow Pipelines.

    Makes the experiment and the pipeline where they are not there, uploads the compiled pipeline unless it is known,
    and starts a run. With --wait it follows the run and ends as the run does.
    """
    from pipelines.client.commands import Submission, submit_run

    where = [] if namespace is None else [f"kubernetes.namespace={namespace}"]
    values = load_spec(spec, overrides=[*where, *(override or [])])
    parent = parse_parent(start_from)
    chosen = parse_stages(stages, count=values.stages.count, first=parent[1] if parent else None)
    console = make_console(stderr=as_json)
    if parent is not None:
        _check_parent(values.store.uri, parent, say=lambda line: console.print(line, highlight=False))
    access = access_of(endpoint, namespace, token, token_file, existing_token_env, cookies, ssl_ca_cert)
    submission = Submission(
        spec=values, stages=chosen, parent=parent, fresh=fresh, cache=cache, name=name, experiment=experiment,
        cron=cron, service_account=service_account, pipeline_root=pipeline_root, mlflow_plugin=mlflow_plugin,
    )  # fmt: skip
    pace = Pace(start_timeout_s=start_timeout)
    submit_run(access, submission, console=console, as_json=as_json, wait=wait, pace=pace)


def resubmit(
    run_id: str,
    *,
    stage: int,
    only: bool,
    override: list[str] | None,
    fresh: bool,
    store: str,
    endpoint: str,
    wait: bool,
    namespace: str | None,
    token_file: Path | None,
    cookies: str | None,
    as_json: bool,
) -> None:
    """Trains a run again on the cluster, from one of its stages; what `lwfed rerun --endpoint` does.

    Args:
        run_id: The parent: lwfed's id of it, `latest`, or that of its pipeline run.
        stage: The first stage to train.
        only: Stop after that stage.
        override: Changes to the spec.
        fresh: Train anew, even where equal work is committed.
        store: The store that has the parent.
        endpoint: Kubeflow Pipelines' address.
        wait: Follow it to its end.
        namespace: The profile's namespace, where Kubeflow has several users.
        token_file: A file with a bearer token.
        cookies: Cookies of a session.
        as_json: Print one JSON object as the last line.

    Raises:
        NotFoundError: There is no such run.
        CheckpointError: The stage before is not committed.
        LwfedError: The server refuses or does not answer.
    """
    from lwfed.cli.history import open_runs, pick_run
    from lwfed.run import runs
    from lwfed.store.opening import open_store
    from pipelines.client.commands import Submission, submit_run
    from pipelines.client.kubeflow import Access, connect
    from pipelines.client.runs import facts_of, find_run

    console = make_console(stderr=as_json)
    access = Access(endpoint=endpoint, namespace=namespace, token_file=token_file, cookies=cookies)
    opened = open_runs(store)
    try:
        run = pick_run(opened, run_id)
    except NotFoundError as unknown:
        kfp = connect(access)
        try:
            facts = facts_of(kfp, find_run(kfp, run_id))
        except NotFoundError:
            raise unknown from None
        if facts.name is None or facts.store is None:
            raise
        opened = open_store(facts.store)
        run = runs.read_run(opened, facts.name)
    parent = (str(run["run_id"]), stage)
    before = check_parent(opened, parent)
    changed = list(override or [])
    launcher = [] if before.kubernetes.image else ["launch.kind=kubernetes"]  # the parent trained on a machine
    where = [] if namespace is None else [f"kubernetes.namespace={namespace}"]
    values = build_spec(run["spec"], overrides=[f"store.uri={opened.uri}", *where, *launcher, *changed])
    if not changed and not fresh:
        fresh = True  # the same work again is what was asked for
    last = f"{stage}" if only else f"{stage}-{before.stages.count}"
    submission = Submission(
        spec=values, stages=parse_stages(last, count=values.stages.count, first=stage), parent=parent, fresh=fresh
    )
    submit_run(access, submission, console=console, as_json=as_json, wait=wait)


def retry(
    run: KfpRun,
    endpoint: Endpoint = None,
    wait: Wait = False,
    start_timeout: StartTimeout = START_TIMEOUT_S,
    namespace: Namespace = None,
    token: Token = None,
    token_file: TokenFile = None,
    existing_token_env: TokenEnv = None,
    cookies: Cookies = None,
    ssl_ca_cert: Authority = None,
    as_json: Json = False,
) -> None:
    """Start the failed tasks of a pipeline run again; its finished tasks and committed rounds stay."""
    from pipelines.client.commands import retry_run

    access = access_of(endpoint, namespace, token, token_file, existing_token_env, cookies, ssl_ca_cert)
    pace = Pace(start_timeout_s=start_timeout)
    retry_run(access, run, console=make_console(stderr=as_json), as_json=as_json, wait=wait, pace=pace)


def cancel(
    run: KfpRun,
    endpoint: Endpoint = None,
    namespace: Namespace = None,
    token: Token = None,
    token_file: TokenFile = None,
    existing_token_env: TokenEnv = None,
    cookies: Cookies = None,
    ssl_ca_cert: Authority = None,
    as_json: Json = False,
) -> None:
    """End a pipeline run and the Jobs of its clients; what is committed stands.

    After Kubeflow's own Terminate the run's exit task deletes the Jobs, a minute or so later where its image can be
    pulled. With a KUBECONFIG this deletes them at once, and again when the run is over, and removes pods that would
    wait for ever.
    """
    from pipelines.client.cancel import cancel_run

    access = access_of(endpoint, namespace, token, token_file, existing_token_env, cookies, ssl_ca_cert)
    cancel_run(access, run, console=make_console(stderr=as_json), as_json=as_json)


def logs(
    run: KfpRun,
    endpoint: Endpoint = None,
    stage: Annotated[int | None, typer.Option("--stage", metavar="S", help="Only that stage's task.")] = None,
    client: Annotated[
        str | None, typer.Option("--client", metavar="ID", help="The pods of that client, through kubectl's config.")
    ] = None,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on until the run ends, and end as it does.")
    ] = False,
    whole: Annotated[bool, typer.Option("--all", help="Also what Kubeflow's own launcher wrote.")] = False,
    namespace: Namespace = None,
    token: Token = None,
    token_file: TokenFile = None,
    existing_token_env: TokenEnv = None,
    cookies: Cookies = None,
    ssl_ca_cert: Authority = None,
) -> None:
    """Print what the tasks of a pipeline run, or the pods of a client, have written.

    Kubeflow Pipelines keep the logs of tasks that have ended. Those of running tasks and of clients' pods come from the
    cluster that KUBECONFIG names.
    """
    from pipelines.client.logs import client_logs, task_logs

    access = access_of(endpoint, namespace, token, token_file, existing_token_env, cookies, ssl_ca_cert)
    if client is not None:
        client_logs(access, run, client=client, stage=stage, follow=follow, write=typer.echo)
    else:
        console = make_console(stderr=True)
        task_logs(access, run, stage=stage, follow=follow, write=typer.echo, console=console, whole=whole)


def schedules(
    schedule: Annotated[
        str | None,
        typer.Argument(metavar="SCHEDULE", help="Its id or the first 8 characters, or its name; none: list them."),
    ] = None,
    pause: Annotated[bool, typer.Option("--pause", help="Start no more runs by it.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Start runs by it again.")] = False,
    delete: Annotated[bool, typer.Option("--delete", help="Delete it; its runs stay.")] = False,
    endpoint: Endpoint = None,
    namespace: Namespace = None,
    token: Token = None,
    token_file: TokenFile = None,
    existing_token_env: TokenEnv = None,
    cookies: Cookies = None,
    ssl_ca_cert: Authority = None,
    as_json: Json = False,
) -> None:
    """List the schedules that `lwfed submit --cron` made, or pause, resume or delete one."""
    from pipelines.client.schedules import change_schedule, show_schedules

    access = access_of(endpoint, namespace, token, token_file, existing_token_env, cookies, ssl_ca_cert)
    wanted = [name for name, asked in (("pause", pause), ("resume", resume), ("delete", delete)) if asked]
    if len(wanted) > 1 or (wanted and schedule is None):
        raise SpecError(
            "a change takes one schedule and one of --pause, --resume and --delete",
            remedy="write lwfed schedules SCHEDULE --pause",
        )
    console = make_console(stderr=as_json)
    if wanted and schedule is not None:
        change_schedule(access, schedule, wanted[0], console=console, as_json=as_json)
    else:
        show_schedules(access, schedule, console=console, as_json=as_json)


def _check_parent(uri: str, parent: tuple[str, int], *, say: Callable[[str], Any]) -> None:
    from lwfed.store.opening import open_store

    try:
        check_parent(open_store(uri), parent)
    except UnreachableError as error:
        say(f"{error.problem}; that {parent[0]} has stage {parent[1] - 1} is left for the cluster to see")


COMMANDS: dict[str, Callable[..., Any]] = {
    "compile": compile_command,
    "submit": submit,
    "retry": retry,
    "cancel": cancel,
    "logs": logs,
    "schedules": schedules,
}
"""The commands that `lwfed` takes from here."""
