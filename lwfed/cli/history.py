"""`lwfed list`, `show`, `report` and `export`: the runs of a store, and what is made of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from lwfed.cli import tables
from lwfed.cli.options import DEFAULT_STORE, Json, RunId, StoreUri
from lwfed.drive.console import make_console, make_table, print_json
from lwfed.drive.trackers import replay_log
from lwfed.formats import HEADLINES, lacks_text, left_out_text, metric_text, rates_text
from lwfed.models.weights import inputs_text
from lwfed.plan.stages import learning_rates
from lwfed.report.clients import client_rows
from lwfed.run import runs
from lwfed.spec.document import write_yaml
from lwfed.spec.model import ModelSpec
from lwfed.spec.stored import OLD_RATES, scales_implicitly, stored_values
from lwfed.store import paths
from lwfed.store.opening import open_store
from lwfed.store.protocol import Store
from lwfed.store.refs import read_record
from lwfed.types.errors import CheckpointError, NotFoundError, UnreachableError
from lwfed.types.records import RunRecord, RunSummary


def open_runs(uri: str) -> Store:
    """Opens a store that must have runs. Raises NotFoundError if it has none."""
    store = open_store(uri)
    if next(iter(runs.run_ids(store)), None) is None:
        raise NotFoundError(f"there are no runs in {store.uri}", remedy="train one with `lwfed run`, or name --store")
    return store


def pick_run(store: Store, run_id: str) -> RunRecord:
    """Reads a run; `latest` is the most recently started one. Warns of damaged runs, which might be later ones.

    Raises:
        NotFoundError: There is no such run.
        CheckpointError: The run is damaged, or all are.
    """
    if run_id != "latest":
        return runs.read_run(store, run_id)
    found, damaged = _readable(store)
    if not found:
        raise _damaged_runs(damaged)
    if damaged:
        make_console(stderr=True).print(f"[yellow]warning:[/] {escape(str(_damaged_runs(damaged)))}")
    return max(found, key=lambda run: run.created)


def _readable(store: Store) -> tuple[list[RunRecord], dict[str, CheckpointError]]:
    """Reads all runs. Returns them, and those that are damaged: run id -> error."""
    found, damaged = [], {}
    for run_id in runs.run_ids(store):
        try:
            found.append(runs.read_run(store, run_id))
        except CheckpointError as error:
            damaged[run_id] = error
    return found, damaged


def _damaged_runs(damaged: Mapping[str, CheckpointError]) -> CheckpointError:
    first = next(iter(damaged.values()))
    named = f"the run {', '.join(damaged)}" if len(damaged) == 1 else f"the runs {', '.join(damaged)}"
    return CheckpointError(f"{named} cannot be read: {first.problem}", remedy=first.remedy)


def list_runs(store: StoreUri = DEFAULT_STORE, as_json: Json = False) -> None:
    """List the runs of a store, newest first; damaged ones are named at the end."""
    opened = open_runs(store)
    found, damaged = _readable(opened)
    rows: list[dict[str, Any]] = []
    for run in found:
        try:
            rows.append(_overview(opened, run))
        except CheckpointError as error:
            damaged[run.run_id] = error
    rows.sort(key=lambda row: str(row["created"]), reverse=True)
    if as_json:
        print_json({"runs": rows})
    elif rows:
        _draw_runs(rows)
    if damaged:
        raise _damaged_runs(damaged)


def _draw_runs(rows: Sequence[Mapping[str, Any]]) -> None:
    heads = ("run", "started", "strategy", "status", "stages", "result", "digest")
    table = make_table(left=heads, overflow="fold")
    for row in rows:
        table.add_row(
            row["run_id"],
            row["created"].replace("T", " ")[:16],
            row["strategy"],
            row["status"] + _from(row["parent"]),
            f"{row['stages_done']}/{row['stages']}",
            "  ".join(metric_text(name, value) for name, value in row["headline"].items()),
            row["digest"][:12],
        )
    make_console().print(table)


def show(run_id: RunId, store: StoreUri = DEFAULT_STORE, as_json: Json = False) -> None:
    """Show a run: its spec, its stages and rounds, and their costs."""
    opened = open_runs(store)
    run = pick_run(opened, run_id)
    stages, rounds = runs.history(opened, run)
    overview = _overview(opened, run)
    if as_json:
        print_json(
            {
                **overview,
                "run": run.to_values(),
                "stage_records": [record.to_values() for record in stages],
                "round_records": [record.to_values() for record in rounds],
                "clients": [asdict(row) for row in client_rows(run, runs.plans_of(run), rounds)],
            }
        )
        return
    console = make_console()
    console.print(f"[bold]{run.run_id}[/]  {overview['status']}  {run.strategy}  started {run.created}")
    if run.parent:
        console.print(f"from stage {run.parent.stage} of {run.parent.run_id}")
    console.print(f"learning rates  {rates_text(learning_rates(runs.plans_of(run)))}")
    if run.model:
        console.print(f"inputs  {inputs_text(ModelSpec.model_validate(run.model).encoders)}", markup=False)
    if scales_implicitly(run.spec):
        console.print(OLD_RATES)
    if part := tables.taking_part(runs.spec_of(run).federation):
        console.print(part)
    if run.data.left_out:
        console.print(left_out_text(run.data.left_out))
    for line in lacks_text(run.data.lacks, run.data.clients):
        console.print(line, highlight=False)
    if stages:
        console.print(tables.stages_table(stages, end_to_end=run.end_to_end))
    if rounds:
        console.print(tables.rounds_table(rounds))
        clients = client_rows(run, runs.plans_of(run), rounds)
        console.print(tables.clients_table(clients))
        if absent := tables.absent_text(clients):
            console.print(absent)
    for item in run.stages:
        console.print(f"stage {item.stage}  key {item.key}")
    if overview["digest"]:
        console.print(f"digest  {overview['digest']}")
    console.print("[bold]spec[/]")
    console.print(write_yaml(stored_values(run.spec), width=110).rstrip(), markup=False)


def report(
    run_id: RunId,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-O", metavar="FILE", help="The file to write; default: in the run's store."),
    ] = None,
    mlflow: Annotated[
        bool, typer.Option("--mlflow", help="Also log records that MLflow lacks, from the run's log.")
    ] = False,
    store: StoreUri = DEFAULT_STORE,
    as_json: Json = False,
) -> None:
    """Write a run's report again: one HTML file with curves, costs, clients and retrieved images."""
    opened = open_runs(store)
    run = pick_run(opened, run_id)
    from lwfed.round.workbench import Workbench
    from lwfed.steps.finish import write_report

    written = write_report(run, bench=Workbench(opened), output=output)
    status = replay_log(run, runs.spec_of(run).tracking, store=opened) if mlflow else None
    if as_json:
        print_json({"run_id": run.run_id, "report": str(written), "mlflow": status})
    else:
        console = make_console()
        console.print(f"report  {written}")
        if status is not None:
            told = f"{status['delivered']} of {status['told']} records"
            console.print(f"mlflow  has {told}, run {status['run_id']}")
    if status is not None and status["delivered"] < status["told"]:
        raise _undelivered(status)


def _undelivered(status: Mapping[str, Any]) -> UnreachableError:
    """Returns the error for records that MLflow did not take: why it cannot be reached, or what it refuses."""
    problems = [*status["refused"], *([status["down"]] if status["down"] else [])]
    missing = f"{status['told'] - status['delivered']} of {status['told']} records"
    reason, _, remedy = "; ".join(problems).partition(" -> ")
    return UnreachableError(
        f"MLflow at {status['uri']} lacks {missing}: {reason}",
        remedy=(f"{remedy}; " if remedy else "") + "once that is fixed, the same command adds them",
    )


def export(
    run_id: RunId,
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The folder to write.")],
    stage: Annotated[
        int | None, typer.Option("--stage", metavar="S", help="The stage to export; default: the last.")
    ] = None,
    with_test_data: Annotated[
        bool, typer.Option("--with-test-data", help="Also write the built-in test scenes, to check the scores.")
    ] = False,
    store: StoreUri = DEFAULT_STORE,
    as_json: Json = False,
) -> None:
    """Export plain timm and transformers weights with their configs, and the heads; usable without lwfed."""
    opened = open_runs(store)
    run = pick_run(opened, run_id)
    from lwfed.export.export import export_run
    from lwfed.round.workbench import Workbench

    status = export_run(run.run_id, folder, bench=Workbench(opened), stage=stage, with_test_data=with_test_data)
    if as_json:
        print_json(status)
        return
    console = make_console()
    console.print(f"exported run {run.run_id}, stage {status['stage']}, to {folder}")
    for path in sorted(path for path in folder.rglob("*") if path.is_file())[:30]:
        console.print(f"  {path.relative_to(folder)}")


def _from(parent: dict[str, Any] | None) -> str:
    return f" (from {parent['run_id']}, stage {parent['stage']})" if parent else ""


def _overview(store: Store, run: RunRecord) -> dict[str, Any]:
    stages, rounds = runs.history(store, run)
    summary = read_record(store, paths.summary(run.run_id), RunSummary)
    metrics = rounds[-1].metrics if rounds else {}
    return {
        "run_id": run.run_id,
        "created": run.created,
        "strategy": run.strategy,
        "status": summary.status if summary else "not finished",
        "parent": run.parent.to_values() if run.parent else None,
        "stages": len(runs.plans_of(run)),
        "stages_done": len(stages),
        "headline": {name: metrics[name] for name in HEADLINES[:-1] if name in metrics},
        "digest": summary.digest if summary else (stages[-1].digest if stages else ""),
    }
