"""`lwfed report` and `lwfed export`: a run's report, and its model for other programs."""

from __future__ import annotations

from typing import Annotated

import typer

from lwfed.cli.history import open_runs, pick_run
from lwfed.cli.options import DEFAULT_STORE, Folder, Json, RunId, StoreUri
from lwfed.drive.console import make_console, print_json
from lwfed.drive.trackers import replay_log
from lwfed.run import runs


def report(
    run_id: RunId,
    output: Annotated[
        str | None,
        typer.Option("--output", "-O", metavar="FILE", help="The file to write; default: in the run's store."),
    ] = None,
    mlflow: Annotated[
        bool, typer.Option("--mlflow", help="Also log records that MLflow lacks, from the run's log.")
    ] = False,
    store: StoreUri = DEFAULT_STORE,
    as_json: Json = False,
) -> None:
    """Write a run's report again: one HTML file with curves, costs, clients and retrieved images."""
    from pathlib import Path

    opened = open_runs(store)
    run = pick_run(opened, run_id)
    from lwfed.round.workbench import Workbench
    from lwfed.steps.finish import write_report

    written = write_report(run, bench=Workbench(opened), output=None if output is None else Path(output))
    status = replay_log(run, runs.spec_of(run).tracking, store=opened) if mlflow else None
    if as_json:
        print_json({"run_id": run.run_id, "report": str(written), "mlflow": status})
        return
    console = make_console()
    console.print(f"report  {written}")
    if status is not None:
        problem = f"; {status['down']}" if status["down"] else ""
        line = f"mlflow  has {status['delivered']} of {status['told']} records, run {status['run_id']}{problem}"
        console.print(line)


def export(
    run_id: RunId,
    folder: Folder,
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
