"""`lwfed list` and `lwfed show`: the runs of a store."""

from __future__ import annotations

from typing import Any

from lwfed.cli import tables
from lwfed.cli.options import DEFAULT_STORE, Json, RunId, StoreUri
from lwfed.drive.console import make_console, make_table, print_json
from lwfed.formats import HEADLINES, left_out_text, metric_text
from lwfed.run import runs
from lwfed.spec.document import write_yaml
from lwfed.store import paths
from lwfed.store.opening import open_store
from lwfed.store.protocol import Store
from lwfed.types.errors import NotFoundError
from lwfed.types.records import RunRecord


def open_runs(uri: str) -> Store:
    """Opens a store that must have runs. Raises NotFoundError if it has none."""
    store = open_store(uri)
    if next(iter(runs.run_ids(store)), None) is None:
        raise NotFoundError(f"there are no runs in {store.uri}", remedy="train one with `lwfed run`, or name --store")
    return store


def pick_run(store: Store, run_id: str) -> RunRecord:
    """Reads a run; `latest` is the most recently started one. Raises NotFoundError."""
    if run_id != "latest":
        return runs.read_run(store, run_id)
    return max((runs.read_run(store, known) for known in runs.run_ids(store)), key=lambda run: run.created)


def list_runs(store: StoreUri = DEFAULT_STORE, as_json: Json = False) -> None:
    """List the runs of a store, newest first."""
    opened = open_runs(store)
    found = sorted((runs.read_run(opened, run_id) for run_id in runs.run_ids(opened)), key=lambda run: run.created)
    rows = [_overview(opened, run) for run in reversed(found)]
    if as_json:
        print_json({"runs": rows})
        return
    table = make_table()
    for name in ("run", "started", "strategy", "status", "stages", "result", "digest"):
        table.add_column(name, overflow="fold")
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
            }
        )
        return
    console = make_console()
    console.print(
        f"[bold]{run.run_id}[/]  {overview['status']}  {run.strategy}  started {run.created}", highlight=False
    )
    if run.parent:
        console.print(f"from stage {run.parent.stage} of {run.parent.run_id}", highlight=False)
    if run.data.left_out:
        console.print(left_out_text(run.data.left_out), highlight=False)
    if stages:
        console.print(tables.stages_table(stages, end_to_end=run.end_to_end))
    if rounds:
        console.print(tables.rounds_table(rounds))
    for item in run.stages:
        console.print(f"stage {item.stage}  key {item.key}", highlight=False)
    if overview["digest"]:
        console.print(f"digest  {overview['digest']}", highlight=False)
    console.print("[bold]spec[/]")
    console.print(write_yaml(run.spec, width=110).rstrip(), highlight=False, markup=False)


def _from(parent: dict[str, Any] | None) -> str:
    return f" (from {parent['run_id']}, stage {parent['stage']})" if parent else ""


def _overview(store: Store, run: RunRecord) -> dict[str, Any]:
    stages, rounds = runs.history(store, run)
    summary = store.read_ref(paths.summary(run.run_id))
    metrics = rounds[-1].metrics if rounds else {}
    return {
        "run_id": run.run_id,
        "created": run.created,
        "strategy": run.strategy,
        "status": summary["status"] if summary else "not finished",
        "parent": run.parent.to_values() if run.parent else None,
        "stages": len(runs.plans_of(run)),
        "stages_done": len(stages),
        "headline": {name: metrics[name] for name in HEADLINES[:6] if name in metrics},
        "digest": summary["digest"] if summary else (stages[-1].digest if stages else ""),
    }
