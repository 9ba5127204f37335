"""`lwfed run` and `lwfed rerun`: train an experiment on this machine."""

from __future__ import annotations

import re
import shlex
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from lwfed import environment
from lwfed.cli import tables
from lwfed.cli.history import open_runs, pick_run
from lwfed.cli.options import DEFAULT_STORE, Fresh, Json, Overrides, RunId, Spec, StoreUri
from lwfed.cost.architectures import architectures_of
from lwfed.drive import training
from lwfed.drive.console import make_console, print_json
from lwfed.drive.display import Display
from lwfed.drive.trackers import place_in_mlflow
from lwfed.formats import amount_text, left_out_text, metric_text, natural_order, seconds_text
from lwfed.run import runs
from lwfed.run.runs import Options
from lwfed.spec.load import load_spec
from lwfed.spec.run import RunSpec
from lwfed.spec.stored import OLD_RATES, scales_implicitly
from lwfed.store import paths
from lwfed.store.opening import open_store
from lwfed.store.protocol import Store
from lwfed.store.refs import read_record
from lwfed.types.errors import NotFoundError, SpecError
from lwfed.types.records import RunSummary
from lwfed.types.uris import scheme_of

RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def run(
    spec: Spec = None,
    override: Overrides = None,
    run_id: Annotated[
        str | None, typer.Option("--run-id", metavar="ID", help="The run's name; resumes an existing run of that name.")
    ] = None,
    fresh: Fresh = False,
    as_json: Json = False,
) -> None:
    """Train an experiment on this machine, from its first stage to its report.

    Without SPEC it trains the built-in experiment on drawn shapes. Committed work is never repeated: the same --run-id
    resumes a killed run, and a second run of the same spec returns at once.
    """
    values = load_spec(spec, overrides=override or [])
    options = Options(run_id=_checked(run_id), fresh=fresh)
    _execute(values, options=options, as_json=as_json)


def rerun(
    run_id: RunId,
    stage: Annotated[int, typer.Option("--stage", metavar="S", help="The first stage to train again.")],
    only: Annotated[bool, typer.Option("--only", help="Stop after this stage.")] = False,
    override: Overrides = None,
    new_id: Annotated[str | None, typer.Option("--run-id", metavar="ID", help="The new run's name.")] = None,
    fresh: Fresh = False,
    store: StoreUri = DEFAULT_STORE,
    endpoint: Annotated[
        str | None,
        typer.Option("--endpoint", metavar="URL", help="Submit the rerun to Kubeflow Pipelines at this URL."),
    ] = None,
    wait: Annotated[bool, typer.Option("--wait", help="With --endpoint: wait until the run ends.")] = False,
    namespace: Annotated[
        str | None, typer.Option("--namespace", metavar="NS", help="With --endpoint: your profile's namespace.")
    ] = None,
    token_file: Annotated[
        Path | None, typer.Option("--token-file", metavar="FILE", help="With --endpoint: a file with a token.")
    ] = None,
    cookies: Annotated[
        str | None, typer.Option("--cookies", metavar="TEXT", help="With --endpoint: a session's cookies.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Train a run again from one of its stages; the earlier stages stay unchanged.

    Creates a new run that refers to its parent. With --endpoint it trains on the cluster, else on this machine.
    """
    if endpoint is not None:
        _resubmit(
            run_id, stage=stage, only=only, override=override, fresh=fresh, store=store, endpoint=endpoint, wait=wait,
            namespace=namespace, token_file=token_file, cookies=cookies, as_json=as_json,
        )  # fmt: skip
        return
    opened = open_runs(store)
    parent = pick_run(opened, run_id)
    values = runs.spec_of(parent, overrides=[f"store.uri={opened.uri}", *(override or [])])
    if scales_implicitly(parent.spec):
        make_console(stderr=True).print(OLD_RATES)
    again = fresh or not override  # without a change, the user wants the same work again
    options = Options(run_id=_checked(new_id), fresh=again, parent=(parent.run_id, stage))
    _execute(values, options=options, as_json=as_json, last_stage=stage if only else None)


def _resubmit(run_id: str, **options: Any) -> None:
    """Passes a rerun on the cluster to the plugin for Kubeflow Pipelines."""
    plugin = next(iter(metadata.entry_points(group="lwfed.reruns")), None)
    if plugin is None:
        raise NotFoundError("support for Kubeflow Pipelines is not installed", remedy="pip install 'lwfed[kubeflow]'")
    plugin.load()(run_id, **options)


def _execute(spec: RunSpec, *, options: Options, as_json: bool, last_stage: int | None = None) -> None:
    console = make_console(stderr=as_json)
    place_in_mlflow(spec.tracking)
    store = open_store(spec.store.uri)
    console.print(_size(spec))
    with Display(console) as display:
        request = training.look_up(spec, options=options, store=store, emit=display, whole=last_stage is None)
    if request.done is None:
        summary = training.train(request, store=store, console=console, last_stage=last_stage)
        console.print()
    else:
        spec = runs.spec_of(runs.read_run(store, request.done))
        done = read_record(store, paths.summary(request.done), RunSummary)
        assert done is not None, "look_up found it"
        summary = done.changed(stages=[stage.changed(reused=True) for stage in done.stages])
        count = len(summary.stages)
        console.print(f"all {count} stages are committed already, by run [bold]{request.done}[/]; --fresh trains again")
    console.print(tables.stages_table(summary.stages, end_to_end=summary.ledger["predicted"]["end_to_end"]))
    run = runs.read_run(store, summary.run_id)
    if request.done is not None and run.data.left_out:
        console.print(left_out_text(run.data.left_out))
    _closing_lines(summary, store=store, console=console, spec=spec)
    if as_json:
        print_json({**summary.to_values(), "left_out": run.data.left_out})


def _size(spec: RunSpec) -> str:
    """Returns the size of the model's encoders in words, known without data."""
    from lwfed.steps.prepare import count_architecture, refuse_weights

    refuse_weights(spec.model)
    known = architectures_of(spec.model, folder=environment.cache_folder(), count=count_architecture)
    sizes = []
    for modality, item in known.items():
        parameters = sum(tensor.numel for tensor in item.tensors(modality).values() if not tensor.buffer)
        sizes.append(f"{modality} {item.name}: {item.depth} blocks, {amount_text(parameters)} parameters")
    return f"[bold]{spec.name}[/]  {'; '.join(sizes)}; {sum(spec.stages.rounds)} rounds"


def _closing_lines(summary: RunSummary, *, store: Store, console: Console, spec: RunSpec) -> None:
    shown = natural_order(name for name in summary.metrics if not name.startswith("train/"))
    scores = [metric_text(name, summary.metrics[name]) for name in shown]
    console.print("  ".join(scores))
    lines = {"run": summary.run_id, "digest": summary.digest, "time": seconds_text(summary.wall_s)}
    report = paths.report(summary.run_id)
    if store.has(report):
        lines["report"] = f"{store.uri}/{report}"
    if spec.tracking.uri is not None:
        lines["mlflow"] = _how_to_see(environment.mlflow_uri() or spec.tracking.uri, ui=spec.tracking.ui)
    for name, value in lines.items():
        console.print(f"{name:>8}  {value}")


def _how_to_see(tracking_uri: str, *, ui: str | None = None) -> str:
    """Returns how to see runs in MLflow: the server's page, or the command that starts a server."""
    is_server = scheme_of(tracking_uri) in ("http", "https") or tracking_uri.startswith("databricks")
    if ui or is_server:
        return f"open {ui or tracking_uri}"
    return f"mlflow ui --backend-store-uri {shlex.quote(tracking_uri)}"


def _checked(run_id: str | None) -> str | None:
    if run_id is not None and not RUN_ID.fullmatch(run_id):
        raise SpecError(f"`{run_id}` is not a valid run id", remedy="use letters, digits, dots, dashes and underscores")
    return run_id
