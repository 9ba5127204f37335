"""`lwfed report` and `lwfed export`: what a run leaves for people and for other programs."""

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
        typer.Option("--output", "-O", metavar="FILE", help="Where to write it; default: beside the run."),
    ] = None,
    mlflow: Annotated[
        bool, typer.Option("--mlflow", help="Tell MLflow what it has missed, from the run's log, too.")
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
    told = replay_log(run, runs.spec_of(run).tracking, store=opened) if mlflow else None
    if as_json:
        print_json({"run_id": run.run_id, "report": str(written), "mlflow": told})
        return
    console = make_console()
    console.print(f"report  {written}", highlight=False, soft_wrap=True)
    if told is not None:
        trouble = f"; {told['down']}" if told["down"] else ""
        line = f"mlflow  {told['delivered']} of {told['told']} records are there, run {told['run_id']}{trouble}"
        console.print(line, highlight=False, soft_wrap=True)


def export(
    run_id: RunId,
    folder: Folder,
    stage: Annotated[int | None, typer.Option("--stage", metavar="S", help="Which stage; default: the last.")] = None,
    with_test_data: Annotated[
        bool, typer.Option("--with-test-data", help="Write the built-in test scenes too, to check the scores with.")
    ] = False,
    store: StoreUri = DEFAULT_STORE,
    as_json: Json = False,
) -> None:
    """Write plain timm and transformers weights with their configs, and the heads; usable without lwfed."""
    opened = open_runs(store)
    run = pick_run(opened, run_id)
    from lwfed.export.export import export_run
    from lwfed.round.workbench import Workbench

    told = export_run(run.run_id, folder, bench=Workbench(opened), stage=stage, with_test_data=with_test_data)
    if as_json:
        print_json(told)
        return
    console = make_console()
    console.print(f"exported run {run.run_id}, stage {told['stage']}, to {folder}", highlight=False, soft_wrap=True)
    for path in sorted(path for path in folder.rglob("*") if path.is_file())[:30]:
        console.print(f"  {path.relative_to(folder)}", highlight=False)
