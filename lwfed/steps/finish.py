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
from lwfed.steps.workbench import Workbench
from lwfed.store import paths
from lwfed.store.checkpoint import read_checkpoint
from lwfed.tracking.protocol import Trackers
from lwfed.types.errors import DataError


def finish_run(run: runs.Run, summary: Mapping[str, Any], *, bench: Workbench, trackers: Trackers) -> Path:
    """Writes the report and the figures, and tells the trackers that the run is over.

    Args:
        run: The run.
        summary: Its summary.
        bench: The process's bench.
        trackers: Who is told.

    Returns:
        The report's file.
    """
    run = runs.read_run(bench.store, run["run_id"])  # its stages were noted while it went on
    report = write_report(run, bench=bench)
    stages, rounds = runs.history(bench.store, run)
    artifacts = [report]
    for name, svg in figures(run, stages=stages, rounds=rounds).items():
        key = f"runs/{run['run_id']}/figures/{name}"
        bench.store.put(key, [svg.encode()])
        artifacts.append(bench.store.fetch(key))
    spec = runs.spec_of(run)
    model = {
        "uri": uri_of(bench.store.uri, run["stages"][-1]["key"]),
        "digest": summary["digest"],
        "kind": spec.model.objective.kind,
        "modalities": list(spec.model.modalities),
        "classes": run["data"]["classes"],
    }
    trackers.finish(summary, artifacts=artifacts, model=model)
    return report


def write_report(run: runs.Run, *, bench: Workbench, output: Path | None = None) -> Path:
    """Writes a run's report from what is committed.

    Args:
        run: The run.
        bench: The process's bench.
        output: The file; None: beside the run.

    Returns:
        The file.
    """
    stages, rounds = runs.history(bench.store, run)
    grid = []
    if stages:
        key = stages[-1]["key"]
        checkpoint = read_checkpoint(bench.store, paths.stage_checkpoint(key))
        if checkpoint is not None:
            with suppress(DataError):  # a report is written where the data are not, too; without pictures
                grid = retrieval_grid(checkpoint, stage=bench.stage(key), bench=bench, place=place_of(run, cache=None))
    html = render(run, stages, rounds, retrieval=grid).encode()
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_bytes(html)
        return output
    bench.store.put(paths.report(run["run_id"]), [html])
    return bench.store.fetch(paths.report(run["run_id"]))
