"""The coordinator of one stage: its first model, its rounds, its commit.

It holds no state of its own: killed at any point and started again, it continues from the last commit.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from lwfed.plan.gates import progress
from lwfed.plan.stages import StagePlan
from lwfed.plan.units import is_adapter
from lwfed.round.context import RoundContext
from lwfed.round.measuring import Pool, measured_kinds, measuring_clients
from lwfed.round.round import run_round
from lwfed.run import runs
from lwfed.run.deadline import Deadlines
from lwfed.run.events import Emit, RoundDone, StageDone, StageStarted
from lwfed.run.launcher import Launcher
from lwfed.run.measured import clients_before, measured_by_kind, measured_ledger
from lwfed.run.overhead import Overhead
from lwfed.run.prune import prune_rounds
from lwfed.run.stage import Stage
from lwfed.run.starting import Starting, age_of_process
from lwfed.run.tasks import StageTask
from lwfed.spec.run import RunSpec
from lwfed.store import paths
from lwfed.store.checkpoint import Checkpoint, read_checkpoint
from lwfed.store.manifest import Block, block_key
from lwfed.store.protocol import Store
from lwfed.store.refs import damaged, read_object, read_record
from lwfed.types.canonical import digest_of
from lwfed.types.errors import CheckpointError
from lwfed.types.records import Ledger, RunRecord, StageRecord
from lwfed.types.round_records import RoundMetrics, RoundRecord


def train_stage(task: StageTask, *, launcher: Launcher, store: Store, emit: Emit, first: bool = True) -> StageRecord:
    """Runs a stage to its end.

    Args:
        task: The run and the stage.
        launcher: Runs the clients.
        store: The store that holds the run.
        emit: Receives the stage's events.
        first: Whether it is this process's first stage, so that the age of the process belongs to its start.

    Returns:
        The StageRecord; `reused` is set if the stage was already committed.

    Raises:
        QuorumError: A round has too few updates.
        CheckpointError: The previous stage is not committed, or an object is corrupted.
    """
    run = runs.read_run(store, task.run_id)
    spec = runs.spec_of(run)
    stage = _stage_of(run, task.stage, store=store)
    plan = stage.plan
    runs.note_stage(store, run, task.stage, stage.key)
    done = _record_of(stage.key, store=store)
    starting = Starting(emit, process_s=age_of_process() if first else None)
    starting.emit(StageStarted(stage=plan.stage, key=stage.key, rounds=plan.rounds, reused=done is not None))
    if done is not None:
        for finished in runs.rounds_of(store, stage.key):
            emit(RoundDone(record=finished))
        record = done.changed(reused=True)
        emit(StageDone(record=record))
        return record
    started = time.monotonic()
    _begin(stage, run, store=store)
    overhead = Overhead(starting.emit)
    start = RoundContext(stage=stage, server_round=0, store=store, place=task.place, run_id=task.run_id)
    records: list[RoundRecord] = []
    pool, measured = _pool_of(spec), set[str]()
    deadlines = Deadlines(run, spec, plan, store=store)
    stands = progress(plan, [])
    while not stands.over:
        ctx = replace(start, server_round=len(records) + 1)
        deadline = partial(deadlines.of, records=tuple(records))
        measuring = partial(measuring_clients, plan, sizes=stage.sizes, pool=pool, done=frozenset(measured))
        done_round = run_round(ctx, launcher=launcher, overhead=overhead, deadline=deadline, measuring=measuring)
        records.append(done_round)
        measured |= measured_kinds(plan, done_round.clients, pool=pool)
        stands = progress(plan, [record.metrics for record in records])
        prune_rounds(
            stage, store=store, keep_rounds=spec.store.keep_rounds, server_round=ctx.server_round, stands=stands
        )
    if not plan.rounds and plan.stage == plan.num_stages:
        launcher.server("evaluate-round", start.task, emit=emit)
    times = {"wall_s": time.monotonic() - started} | ({"start_s": starting.seconds} if starting.seconds else {})
    record = _commit(stage, run, records, result=stands.result, store=store, times=times)
    emit(StageDone(record=record))
    return record


def _pool_of(spec: RunSpec) -> Pool:
    """Returns the machines of each client: pools of a cluster may have other devices, and here all have the same."""
    if spec.launch.kind != "kubernetes":
        return lambda client: "this machine"
    return lambda client: spec.kubernetes.pool_of(client).name


def _stage_of(run: RunRecord, number: int, *, store: Store) -> Stage:
    """Returns a stage of a run. Raises CheckpointError if the previous stage is not committed."""
    plan = runs.plans_of(run)[number - 1]
    digest = runs.input_digest_of(store, run, number)
    return Stage(
        key=runs.key_of(run, plan, input_digest=digest),
        plan=plan,
        input_digest=digest,
        num_classes=run.num_classes,
        data_version=runs.data_version_of(run),
        data_versions=run.data.versions,
        tokenizers=run.data.tokenizers,
        class_counts=tuple(run.data.class_counts),
        sizes=run.data.clients,
        first_round=_first_round(run, plan, store=store),
    )


def _first_round(run: RunRecord, plan: StagePlan, *, store: Store) -> int | None:
    """Returns the global number of a stage's first round if stages may have ended early; None if they may not."""
    if runs.spec_of(run).stages.gate is None:
        return None
    keys = [runs.stage_key_of(run, stage) for stage in range(1, plan.stage)]
    records = [None if key is None else _record_of(key, store=store) for key in keys]
    return 1 + sum(record.rounds for record in records if record is not None)


def _begin(stage: Stage, run: RunRecord, *, store: Store) -> None:
    """Writes the plan, and the input checkpoint with the appended blocks as round 0."""
    plan = stage.plan
    written = {
        "key": stage.key,
        "plan": plan.model_dump(mode="json"),
        "input_digest": stage.input_digest,
        "code_version": run.code_version,
        "data_version": runs.data_version_of(run),
        "data_versions": run.data.versions,
        "tokenizers": run.data.tokenizers,
        "num_classes": stage.num_classes,
        **({"class_counts": list(stage.class_counts)} if stage.class_counts else {}),
        "run_id": run.run_id,
    }
    store.write_ref(paths.stage_plan(stage.key), written, if_absent=True)
    if store.has(paths.round_checkpoint(stage.key, 0)):
        return
    blocks = {}
    if plan.stage > 1:
        before = runs.stage_key_of(run, plan.stage - 1)
        result = None if before is None else read_checkpoint(store, paths.stage_checkpoint(before))
        if result is None:
            raise CheckpointError(f"stage {plan.stage - 1} is not committed", remedy="run the stages in order")
        blocks = {u: block for u, block in result.blocks.items() if u in plan.present or not is_adapter(u)}
    blocks |= _appended(run, plan, units=[unit for unit in plan.present if unit not in blocks], store=store)
    if set(blocks) != set(plan.present):
        odd = sorted(set(blocks) ^ set(plan.present))
        raise CheckpointError(
            f"the checkpoint of stage {plan.stage - 1} and the plan of stage {plan.stage} differ in {odd[0]}",
            remedy="rerun from an earlier stage, or keep the model and the schedule of the parent run",
        )
    store.write_ref(paths.round_checkpoint(stage.key, 0), Checkpoint(blocks=blocks).to_values(), if_absent=True)


def _appended(run: RunRecord, plan: StagePlan, *, units: Sequence[str], store: Store) -> dict[str, Block]:
    """Returns the initial blocks of units: those drawn when the run was prepared if still stored, else drawn now."""
    key = paths.initial(run.run_id)
    known = read_object(store, key) or {}
    try:
        drawn = {unit: Block.from_values(known[unit]) for unit in units if unit in known}
    except CheckpointError as error:
        raise damaged(key, error.problem) from None
    drawn = {unit: block for unit, block in drawn.items() if store.size(block_key(block)) == block.nbytes}
    missing = [unit for unit in units if unit not in drawn]
    if missing:
        from lwfed.round.initial import draw  # loads torch

        drawn |= draw(run, plan, units=missing, store=store)
    return drawn


def _record_of(key: str, *, store: Store) -> StageRecord | None:
    """Reads the record of a committed stage; None if the stage is not committed."""
    committed = store.has(paths.stage_checkpoint(key))
    return read_record(store, paths.stage_record(key), StageRecord) if committed else None


def _commit(
    stage: Stage, run: RunRecord, records: Sequence[RoundRecord], *, result: int, store: Store, times: Mapping[str, Any]
) -> StageRecord:
    """Commits the stage: the checkpoint of round `result` becomes its result."""
    plan = stage.plan
    checkpoint = read_checkpoint(store, paths.round_checkpoint(stage.key, result))
    if checkpoint is None:
        raise CheckpointError(f"round {result} of stage {plan.stage} is not committed", remedy="run it again")
    predicted = next((cost for cost in run.predicted if cost["stage"] == plan.stage), None)
    evaluated = read_record(store, paths.round_metrics(stage.key, result), RoundMetrics)
    earlier = clients_before(run, plan.stage, store=store)
    kinds = measured_by_kind(plan, records, earlier=earlier)
    ledger = Ledger(predicted=predicted, measured=measured_ledger(records, earlier=earlier))
    record = StageRecord(
        stage=plan.stage,
        key=stage.key,
        digest=checkpoint.digest,
        input_digest=stage.input_digest,
        plan_digest=digest_of(plan.model_dump(mode="json")),
        rounds=len(records),
        metrics=dict(records[result - 1].metrics if records else evaluated.metrics if evaluated else {}),
        ledger=ledger.changed(kinds=kinds) if kinds else ledger,
        **times,
        reused=False,
        **_gated(stage, rounds=len(records), result=result),
    )
    store.write_ref(paths.stage_record(stage.key), record.to_values())
    commit = {**replace(checkpoint, change={}).to_values(), "made_by": run.run_id}
    store.write_ref(paths.stage_checkpoint(stage.key), commit, if_absent=True)
    return record


def _gated(stage: Stage, *, rounds: int, result: int) -> dict[str, int]:
    """Returns the fields of the record of a stage that a gate may have ended."""
    if stage.first_round is None:
        return {}
    return {"result_round": result, "last_round": stage.first_round + rounds - 1}
