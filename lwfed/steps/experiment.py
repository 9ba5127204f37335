"""Runs an experiment's stages one after another in one process, and sums them up."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from pathlib import Path

from lwfed.round.train_stage import train_stage
from lwfed.run import runs
from lwfed.run.events import Emit, RoundDone, RunStarted, StageDone, StageStarted, Summarised
from lwfed.run.launcher import Launcher
from lwfed.run.tasks import Place, StageTask
from lwfed.store import paths
from lwfed.store.protocol import Store
from lwfed.types.records import RunRecord, RunSummary, StageRecord, StageSummary
from lwfed.types.uris import absolute


def place_of(run: RunRecord, *, cache: Path | None) -> Place:
    """Returns where a run's data and cache are on this machine.

    Args:
        run: The run.
        cache: Folder for clients' frozen blocks; each run has a subfolder.
    """
    spec = runs.spec_of(run)
    return Place(
        root=None if spec.data.root is None else absolute(spec.data.root),
        workers=spec.data.workers,
        device=spec.launch.device,
        cache=None if cache is None else str(cache / run.run_id),
    )


def run_stages(
    run: RunRecord,
    *,
    launcher: Launcher,
    store: Store,
    emit: Emit,
    cache: Path | None,
    last_stage: int | None = None,
) -> RunSummary:
    """Runs the uncommitted part of a run, stage after stage, and writes its summary.

    Args:
        run: A prepared run.
        launcher: Runs the clients.
        store: The run's store.
        emit: Receives the run's events: `RunStarted` first, `Summarised` last.
        cache: Folder for clients' frozen blocks.
        last_stage: Stops after this stage; None: runs all stages.

    Returns:
        The summary.

    Raises:
        QuorumError: A round has too few updates.
        CheckpointError: An object is missing or corrupted.
    """
    started = time.monotonic()
    place = place_of(run, cache=cache)
    if not launcher.remote:
        from lwfed.round.runtime import pick_device  # loads torch

        pick_device(place.device)
    emit(RunStarted(record=run))
    total = len(runs.plans_of(run))
    first = run.parent.stage if run.parent else 1
    taken, _ = runs.history(store, run.changed(stages=[item for item in run.stages if item.stage < first]))
    records = [record.changed(reused=True) for record in taken]
    for record in records:
        emit(StageStarted(stage=record.stage, key=record.key, rounds=record.rounds, reused=True))
        for done in runs.rounds_of(store, record.key):
            emit(RoundDone(record=done))
        emit(StageDone(record=record))
    for stage in range(first, min(total, last_stage or total) + 1):
        task = StageTask(store=store.uri, run_id=run.run_id, stage=stage, place=place)
        records.append(train_stage(task, launcher=launcher, store=store, emit=emit, first=stage == first))
    if place.cache is not None:
        shutil.rmtree(place.cache, ignore_errors=True)
    summary = summarise(run, records, wall_s=time.monotonic() - started, complete=len(records) == total)
    store.write_ref(paths.summary(run.run_id), summary.to_values())
    emit(Summarised(record=summary))
    return summary


def summarise(run: RunRecord, records: Sequence[StageRecord], *, wall_s: float, complete: bool) -> RunSummary:
    """Returns a run's summary, which `lwfed run --json` prints last."""
    return RunSummary(
        run_id=run.run_id,
        status="finished" if complete else "partial",
        digest=records[-1].digest,
        metrics=next((record.metrics for record in reversed(records) if record.metrics), {}),
        ledger={
            "predicted": {"stages": run.predicted, "end_to_end": run.end_to_end},
            "measured": measured_total(records),
        },
        stages=[
            StageSummary(
                stage=record.stage,
                digest=record.digest,
                rounds=record.rounds,
                **({} if record.result_round is None else {"result_round": record.result_round}),
                metrics=record.metrics,
                ledger=record.ledger,
                reused=record.reused,
                wall_s=record.wall_s,
            )
            for record in records
        ],
        wall_s=wall_s,
    )


def measured_total(records: Sequence[StageRecord]) -> dict[str, float]:
    """Returns the total traffic of a client that took part in every round, and its largest peak memory.

    Frozen blocks count once if the client caches them, as in the stages' own means; see `measured_ledger`.
    """
    total: dict[str, float] = {}
    for record in records:
        measured = record.ledger.measured
        for name in ("bytes_up", "bytes_down", "bytes_down_frozen"):
            if name in measured:
                total[name] = total.get(name, 0.0) + measured[name] * record.rounds
        if "peak_tensor_bytes" in measured:
            total["peak_tensor_bytes"] = max(total.get("peak_tensor_bytes", 0), measured["peak_tensor_bytes"])
    return total
