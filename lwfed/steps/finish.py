"""What a finished run leaves: its report, its figures, and the model that MLflow registers."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from lwfed.steps import runs
from lwfed.steps.experiment import place_of
from lwfed.steps.figures import figures
from lwfed.steps.report import render
from lwfed.steps.retrieval import retrieval_grid
from lwfed.steps.serve import uri_of
from lwfed.steps.tasks import Place, RunTask
from lwfed.steps.workbench import Workbench
from lwfed.store import paths
from lwfed.store.checkpoint import read_checkpoint
from lwfed.store.protocol import Store
from lwfed.tracking.protocol import Trackers
from lwfed.types.errors import DataError


def finish(task: RunTask, *, bench: Workbench) -> str:
    """Writes a run's report and figures beside it.

    Args:
        task: Which run, and where the test data lie for the report's pictures.
        bench: The process's bench.

    Returns:
        The report's key.

    Raises:
        NotFoundError: There is no such run.
    """
    run = runs.read_run(bench.store, task.run_id)
    stages, rounds = runs.history(bench.store, run)
    html = report_of(run, bench=bench, place=task.place)
    bench.store.put(paths.report(run["run_id"]), [html])
    for name, svg in figures(run, stages=stages, rounds=rounds).items():
        bench.store.put(paths.figure(run["run_id"], name), [svg.encode()])
    return paths.report(run["run_id"])


def tell_finish(run: runs.Run, summary: Mapping[str, Any], *, store: Store, trackers: Trackers) -> None:
    """Tells the trackers that a run is over, with what `finish` wrote.

    Args:
        run: The run.
        summary: Its summary.
        store: Where it is.
        trackers: Who is told.
    """
    run = runs.read_run(store, run["run_id"])  # its stages were noted while it went on
    keys = [paths.report(run["run_id"]), *store.list(paths.figure(run["run_id"], ""))]
    spec = runs.spec_of(run)
    model = {
        "uri": uri_of(store.uri, run["stages"][-1]["key"]),
        "digest": summary["digest"],
        "kind": spec.model.objective.kind,
        "modalities": list(spec.model.modalities),
        "classes": run["data"]["classes"],
    }
    trackers.finish(summary, artifacts=[store.fetch(key) for key in keys if store.has(key)], model=model)


def write_report(run: runs.Run, *, bench: Workbench, output: Path | None = None) -> Path:
    """Writes a run's report from what is committed.

    Args:
        run: The run.
        bench: The process's bench.
        output: The file; None: beside the run.

    Returns:
        The file.
    """
    html = report_of(run, bench=bench, place=place_of(run, cache=None))
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_bytes(html)
        return output
    bench.store.put(paths.report(run["run_id"]), [html])
    return bench.store.fetch(paths.report(run["run_id"]))


def report_of(run: runs.Run, *, bench: Workbench, place: Place | None) -> bytes:
    """Gives a run's report as one HTML page; with pictures where the test data are at hand."""
    stages, rounds = runs.history(bench.store, run)
    grid = []
    if stages and place is not None:
        key = stages[-1]["key"]
        checkpoint = read_checkpoint(bench.store, paths.stage_checkpoint(key))
        if checkpoint is not None:
            with suppress(DataError):  # a report is written where the data are not, too; without pictures
                grid = retrieval_grid(checkpoint, stage=bench.stage(key), bench=bench, place=place)
    return render(run, stages, rounds, retrieval=grid).encode()
