"""An experiment from its first stage to its report: the walk that a laptop takes in one process."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lwfed.round.train_stage import train_stage
from lwfed.run import runs
from lwfed.run.launcher import Emit, Launcher
from lwfed.run.tasks import Place, StageTask
from lwfed.store import paths
from lwfed.store.protocol import Store

SUMMARY_KEYS = ("stage", "digest", "rounds", "metrics", "ledger", "reused", "wall_s")


def place_of(run: runs.Run, *, cache: Path | None) -> Place:
    """Says where things lie for a run on this machine.

    Args:
        run: The run.
        cache: Folder in which clients keep frozen blocks; each run has its own below it.
    """
    spec = runs.spec_of(run)
    return Place(
        root=None if spec.data.root is None else str(Path(spec.data.root).expanduser().absolute()),
        workers=spec.data.workers,
        device=spec.launch.device,
        cache=None if cache is None else str(cache / run["run_id"]),
    )


def run_stages(
    run: dict[str, Any],
    *,
    launcher: Launcher,
    store: Store,
    emit: Emit,
    cache: Path | None,
    last_stage: int | None = None,
) -> dict[str, Any]:
    """Runs what is left of a run, stage after stage, and writes its summary.

    Args:
        run: A prepared run.
        launcher: Where clients run.
        store: Where the run is.
        emit: Told what happens; see `train_stage`. Besides: `run` (the RunRecord) first, and `summary` last.
        cache: Folder for clients' frozen blocks.
        last_stage: Stops after this stage; None goes on to the last.

    Returns:
        The summary: run_id, status, digest, metrics, ledger, stages.

    Raises:
        QuorumError: A round has too few updates.
        CheckpointError: An object is missing or corrupted.
    """
    started = time.monotonic()
    place = place_of(run, cache=cache)
    if not launcher.remote:
        from lwfed.round.runtime import pick_device  # loads torch

        pick_device(place.device)
    emit("run", run)
    total = len(runs.plans_of(run))
    first = run["parent"]["stage"] if run["parent"] else 1
    taken = runs.history(store, {**run, "stages": [s for s in run["stages"] if s["stage"] < first]})[0]
    records = [{**record, "reused": True} for record in taken]
    for record in records:
        emit("stage_started", {key: record[key] for key in ("stage", "key", "rounds", "reused")})
        for told in runs.rounds_of(store, record["key"]):
            emit("round", told)
        emit("stage", record)
    for stage in range(first, min(total, last_stage or total) + 1):
        task = StageTask(store=store.uri, run_id=run["run_id"], stage=stage, place=place)
        records.append(train_stage(task, launcher=launcher, store=store, emit=emit))
    if place.cache is not None:
        shutil.rmtree(place.cache, ignore_errors=True)
    summary = summarise(run, records, wall_s=time.monotonic() - started, complete=len(records) == total)
    store.write_ref(paths.summary(run["run_id"]), summary)
    emit("summary", summary)
    return summary


def summarise(run: runs.Run, records: list[dict[str, Any]], *, wall_s: float, complete: bool) -> dict[str, Any]:
    """Sums a run up; what `lwfed run --json` prints last."""
    last = records[-1]
    judged: dict[str, float] = next((record["metrics"] for record in reversed(records) if record["metrics"]), {})
    return {
        "run_id": run["run_id"],
        "status": "finished" if complete else "partial",
        "digest": last["digest"],
        "metrics": judged,
        "ledger": {
            "predicted": {"stages": run["predicted"], "end_to_end": run["end_to_end"]},
            "measured": measured_total(records),
        },
        "stages": [{key: record[key] for key in SUMMARY_KEYS} for record in records],
        "wall_s": wall_s,
    }


def measured_total(records: list[dict[str, Any]]) -> Mapping[str, float]:
    """Adds up what a client that took part in every round sent and received, and its largest peak of memory.

    Frozen blocks count once where the client keeps them, as they do in the stages' own means; see `measured_ledger`.
    """
    total: dict[str, float] = {}
    for record in records:
        measured = record["ledger"]["measured"]
        for name in ("bytes_up", "bytes_down", "bytes_down_frozen"):
            if name in measured:
                total[name] = total.get(name, 0.0) + measured[name] * record["rounds"]
        if "peak_tensor_bytes" in measured:
            total["peak_tensor_bytes"] = max(total.get("peak_tensor_bytes", 0), measured["peak_tensor_bytes"])
    return total
