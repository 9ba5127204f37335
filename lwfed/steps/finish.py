"""Writes a finished run's report and figures."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from lwfed.report.figures import Drawing, draw_run
from lwfed.report.page import render
from lwfed.report.plots import document
from lwfed.report.retrieval import retrieval_grid
from lwfed.round.workbench import Workbench
from lwfed.run import runs
from lwfed.run.tasks import Place, RunTask
from lwfed.steps.experiment import place_of
from lwfed.store import paths
from lwfed.store.checkpoint import read_checkpoint
from lwfed.types.errors import DataError
from lwfed.types.records import RunRecord


def finish(task: RunTask, *, bench: Workbench) -> str:
    """Writes a run's report and figures to its store.

    Args:
        task: The run, and the place of the test data for the report's pictures.
        bench: The process's workbench.

    Returns:
        The report's key.

    Raises:
        NotFoundError: The run does not exist.
    """
    run = runs.read_run(bench.store, task.run_id)
    stages, rounds = runs.history(bench.store, run)
    drawings = draw_run(run, stages=stages, rounds=rounds)
    html = report_of(run, bench=bench, place=task.place, drawings=drawings)
    bench.store.put(paths.report(run.run_id), [html])
    for name, drawing in drawings.items():
        bench.store.put(paths.figure(run.run_id, f"{name}.svg"), [document(drawing.svg).encode()])
    return paths.report(run.run_id)


def write_report(run: RunRecord, *, bench: Workbench, output: Path | None = None) -> Path:
    """Writes a run's report from its committed work.

    Args:
        run: The run.
        bench: The process's workbench.
        output: The file; None: in the run's store.

    Returns:
        The file.
    """
    html = report_of(run, bench=bench, place=place_of(run, cache=None))
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_bytes(html)
        return output
    bench.store.put(paths.report(run.run_id), [html])
    return bench.store.fetch(paths.report(run.run_id))


def report_of(
    run: RunRecord, *, bench: Workbench, place: Place | None, drawings: Mapping[str, Drawing] | None = None
) -> bytes:
    """Returns a run's report as one HTML page; with pictures if the test data are available."""
    stages, rounds = runs.history(bench.store, run)
    grid = []
    if stages and place is not None:
        key = stages[-1].key
        checkpoint = read_checkpoint(bench.store, paths.stage_checkpoint(key))
        if checkpoint is not None:
            with suppress(DataError):  # without the data, the report has no pictures
                grid = retrieval_grid(checkpoint, stage=bench.stage(key), bench=bench, place=place)
    return render(run, stages, rounds, drawings=drawings, retrieval=grid).encode()
