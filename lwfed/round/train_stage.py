"""The coordinator of one stage: sample, train, accept, aggregate, commit, round after round.

It holds no state of its own. Killed at any point and started again, it goes on from the last commit: an update that is
committed is not trained again, an accepted set is not changed, a committed round is skipped.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from lwfed import environment
from lwfed.plan.cohort import client_ids, sample
from lwfed.plan.stages import StagePlan
from lwfed.round.counted import counted_until
from lwfed.run import runs
from lwfed.run.launcher import Emit, Launcher, Outcome
from lwfed.run.measured import clients_before, lost_in, measured_ledger, pooled, recomputed_in, unkept_in
from lwfed.run.overhead import Gap
from lwfed.run.prune import prune_rounds
from lwfed.run.stage import Stage
from lwfed.run.tasks import ClientTask, RoundTask, StageTask
from lwfed.spec.run import RunSpec
from lwfed.store import paths
from lwfed.store.checkpoint import Checkpoint, read_checkpoint
from lwfed.store.manifest import Block, block_key
from lwfed.store.protocol import Store
from lwfed.types.canonical import digest_of
from lwfed.types.errors import CheckpointError, QuorumError


def train_stage(task: StageTask, *, launcher: Launcher, store: Store, emit: Emit) -> dict[str, Any]:
    """Runs a stage to its end.

    Args:
        task: Which run and stage.
        launcher: Where clients run.
        store: Where the run is.
        emit: Told what happens: `stage_started`, `round_started`, `client_*`, `round` (a RoundRecord), `stage` (a
            StageRecord).

    Returns:
        The StageRecord; `reused` where the work was done before.

    Raises:
        QuorumError: A round has too few updates.
        CheckpointError: The stage before is not committed, or an object is corrupted.
    """
    run = runs.read_run(store, task.run_id)
    spec = runs.spec_of(run)
    plan = runs.plans_of(run)[task.stage - 1]
    digest = runs.input_digest_of(store, run, task.stage)
    stage = Stage(
        key=runs.key_of(run, plan, input_digest=digest),
        plan=plan,
        input_digest=digest,
        num_classes=run["num_classes"],
        data_version=runs.data_version_of(run),
    )
    runs.note_stage(store, run, task.stage, stage.key)
    record = store.read_ref(paths.stage_record(stage.key))
    reused = record is not None and store.has(paths.stage_checkpoint(stage.key))
    emit("stage_started", {"stage": plan.stage, "key": stage.key, "rounds": plan.rounds, "reused": reused})
    if reused and record is not None:
        for told in runs.rounds_of(store, stage.key):
            emit("round", told)
        record = {**record, "reused": True}
        emit("stage", record)
        return record
    started = time.monotonic()
    _begin(stage, run, store=store)
    records = []
    gap = Gap(emit)
    for server_round in range(1, plan.rounds + 1):
        records.append(_round(stage, server_round, task=task, spec=spec, launcher=launcher, store=store, gap=gap))
        prune_rounds(stage, store=store, keep_rounds=spec.store.keep_rounds, server_round=server_round)
    if not plan.rounds and plan.stage == plan.num_stages:
        task_0 = RoundTask(store=store.uri, run_id=task.run_id, stage_key=stage.key, server_round=0, place=task.place)
        launcher.server("evaluate-round", task_0, emit=emit)
    record = _commit(stage, run, records, store=store, wall_s=time.monotonic() - started)
    emit("stage", record)
    return record


def _begin(stage: Stage, run: runs.Run, *, store: Store) -> None:
    """Writes the plan, and as round 0 the input checkpoint with the appended blocks."""
    plan = stage.plan
    written = {
        "key": stage.key,
        "plan": plan.model_dump(mode="json"),
        "input_digest": stage.input_digest,
        "code_version": run["code_version"],
        "data_version": runs.data_version_of(run),
        "num_classes": stage.num_classes,
        "run_id": run["run_id"],
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
        blocks = dict(result.blocks)
    blocks |= _appended(run, plan, units=[unit for unit in plan.present if unit not in blocks], store=store)
    if set(blocks) != set(plan.present):
        odd = sorted(set(blocks) ^ set(plan.present))
        raise CheckpointError(
            f"the checkpoint of stage {plan.stage - 1} and the plan of stage {plan.stage} differ in {odd[0]}",
            remedy="rerun from an earlier stage, or keep the model and the schedule of the parent run",
        )
    store.write_ref(paths.round_checkpoint(stage.key, 0), Checkpoint(blocks=blocks).to_values(), if_absent=True)


def _appended(run: runs.Run, plan: StagePlan, *, units: Sequence[str], store: Store) -> dict[str, Block]:
    """Returns the first blocks of units: those that were drawn with the run, where they are there, else drawn now."""
    known = store.read_ref(paths.initial(run["run_id"])) or {}
    drawn = {unit: Block.from_values(known[unit]) for unit in units if unit in known}
    drawn = {unit: block for unit, block in drawn.items() if store.size(block_key(block)) == block.nbytes}
    missing = [unit for unit in units if unit not in drawn]
    if missing:
        from lwfed.round.initial import draw  # loads torch

        drawn |= draw(run, plan, units=missing, store=store)
    return drawn


def _round(
    stage: Stage,
    server_round: int,
    *,
    task: StageTask,
    spec: RunSpec,
    launcher: Launcher,
    store: Store,
    gap: Gap,
) -> dict[str, Any]:
    """Runs a round, or what is left of it; gives its RoundRecord."""
    plan, emit = stage.plan, gap.tell
    record = store.read_ref(paths.round_record(stage.key, server_round))
    if record is not None:
        emit("round", record)
        return record
    started = time.monotonic()
    cohort = sample(
        plan.round_seed(server_round, "cohort"),
        clients=client_ids(plan.cohort.num_clients),
        fraction_fit=plan.cohort.fraction_fit,
        min_fit_clients=plan.cohort.min_fit_clients,
        min_available_clients=plan.cohort.min_available_clients,
    )
    emit("round_started", {"stage": plan.stage, "round": server_round, "cohort": list(cohort)})
    work = RoundTask(
        store=store.uri, run_id=task.run_id, stage_key=stage.key, server_round=server_round, place=task.place
    )
    accepted = store.read_ref(paths.accepted(stage.key, server_round))
    if accepted is None:
        accepted = _collect(stage, work, cohort, spec=spec, launcher=launcher, store=store, emit=emit)
    emit("aggregating", {"stage": plan.stage, "round": server_round, "clients": len(accepted["clients"])})
    launcher.server("aggregate-round", work, emit=emit)
    checkpoint = read_checkpoint(store, paths.round_checkpoint(stage.key, server_round))
    if checkpoint is None:
        raise CheckpointError(f"round {server_round} of stage {plan.stage} was not committed", remedy="run it again")
    _drop_updates(store, stage, server_round)
    judging = time.monotonic()
    federated, unjudged = _judge_on_clients(stage, work, spec=spec, launcher=launcher, store=store, emit=emit)
    judging = time.monotonic() - judging
    record = _round_record(stage, server_round, store, accepted, checkpoint, federated, time.monotonic() - started)
    if federated or unjudged:
        record["wall_s"]["evaluate_clients"] = judging
    record["wall_s"] |= gap.close_round(record["wall_s"])
    if unjudged:
        record["failed_evaluations"] = unjudged
    unkept = unkept_in(record["clients"])
    if unkept:
        client, why = min(unkept.items())
        emit("warning", {"message": f"{len(unkept)} client(s) keep nothing from round to round; {client}: {why}"})
    recomputed = recomputed_in(record["clients"])
    if recomputed:
        record["recomputed_prefixes"] = recomputed
        client, why = min(recomputed.items())
        emit("warning", {"message": f"frozen blocks of {len(recomputed)} client(s) run in each step; {client}: {why}"})
    lost = lost_in(record["clients"])
    if lost:
        record["lost_residuals"] = lost
        emit("warning", {"message": f"{', '.join(lost)} lost what the last upload rounded off: equal runs may differ"})
    store.write_ref(paths.round_record(stage.key, server_round), record)
    emit("round", record)
    return record


def _collect(
    stage: Stage,
    task: RoundTask,
    cohort: Sequence[str],
    *,
    spec: RunSpec,
    launcher: Launcher,
    store: Store,
    emit: Emit,
) -> dict[str, Any]:
    """Has the cohort train until all are in or the deadline passes, and commits which updates count."""
    plan, server_round = stage.plan, task.server_round
    before = store.read_ref(paths.round_checkpoint(stage.key, server_round - 1)) or {}
    told = {"cohort": list(cohort), "deadline_s": spec.federation.round_timeout_s, "input": before.get("digest")}
    if plan.exchange.upload != "fp32":
        told["counted"] = counted_until(stage.key, server_round, store=store)
    store.write_ref(paths.round_task(stage.key, server_round), told, if_absent=True)
    started = time.monotonic()
    failed: dict[str, str] = {}
    waiting = [client for client in cohort if not store.has(paths.update(stage.key, server_round, client))]
    for outcome in _run_clients("train-client", stage, task, waiting, spec=spec, launcher=launcher, emit=emit):
        update = store.read_ref(paths.update(stage.key, server_round, outcome.client))
        if update is None:
            failed[outcome.client] = outcome.reason or "it ended without an update"
        emit(
            "client_done",
            {
                "stage": plan.stage,
                "round": server_round,
                "client": outcome.client,
                "failed": failed.get(outcome.client),
                "metrics": None if update is None else update["metrics"],
            },
        )
    updates = {client: store.read_ref(paths.update(stage.key, server_round, client)) for client in cohort}
    clients = {
        client: {key: update[key] for key in ("digest", "num_examples", "metrics")}
        for client, update in updates.items()
        if update is not None
    }
    if len(clients) < plan.cohort.min_fit_clients:
        reasons = grouped(failed)
        raise QuorumError(
            f"round {server_round} of stage {plan.stage} has {len(clients)} of {len(cohort)} updates and needs "
            f"{plan.cohort.min_fit_clients} ({reasons})",
            remedy=f"fix what ended them; then {environment.go_on()}",
        )
    accepted = {"clients": clients, "failed": failed, "cohort": list(cohort), "wall_s": time.monotonic() - started}
    store.write_ref(paths.accepted(stage.key, server_round), accepted, if_absent=True)
    return store.read_ref(paths.accepted(stage.key, server_round)) or accepted


def grouped(failed: Mapping[str, str]) -> str:
    """Writes why clients failed: each reason once with its clients; remedies stand in the lines above."""
    clients: dict[str, list[str]] = {}
    for client, reason in sorted(failed.items()):
        clients.setdefault(reason.partition(" -> ")[0], []).append(client)
    return "; ".join(f"{', '.join(names)}: {reason}" for reason, names in clients.items())


def _run_clients(
    step: str, stage: Stage, task: RoundTask, clients: Sequence[str], *, spec: RunSpec, launcher: Launcher, emit: Emit
) -> Sequence[Outcome] | Any:
    tasks = [ClientTask(**task.model_dump(), client=client) for client in clients]
    return launcher.clients(step, tasks, deadline_s=spec.federation.round_timeout_s, emit=emit)


def _judge_on_clients(
    stage: Stage, task: RoundTask, *, spec: RunSpec, launcher: Launcher, store: Store, emit: Emit
) -> tuple[dict[str, float], dict[str, str]]:
    """Gives the clients' pooled metrics where they are due, and why some clients gave none."""
    every, last = stage.plan.evaluation.federated_every, stage.plan.rounds
    if not every or (task.server_round % every and task.server_round != last):
        return {}, {}
    clients = client_ids(stage.plan.cohort.num_clients)
    failed: dict[str, str] = {}
    for outcome in _run_clients("evaluate-client", stage, task, clients, spec=spec, launcher=launcher, emit=emit):
        if outcome.exit_code:
            failed[outcome.client] = outcome.reason
            emit("warning", {"message": f"{outcome.client} could not evaluate: {outcome.reason}"})
    parts = {}
    for client in clients:
        value = store.read_ref(paths.client_evaluation(stage.key, task.server_round, client))
        if value is not None and value["num_examples"]:
            parts[client] = (value["num_examples"], value["metrics"])
    return pooled(parts), failed


def _round_record(
    stage: Stage,
    server_round: int,
    store: Store,
    accepted: Mapping[str, Any],
    checkpoint: Checkpoint,
    federated: Mapping[str, float],
    wall_s: float,
) -> dict[str, Any]:
    judged = store.read_ref(paths.round_metrics(stage.key, server_round)) or {"metrics": {}, "wall_s": {}}
    clients = {client: item["metrics"] for client, item in sorted(accepted["clients"].items())}
    examples = sum(metrics["num_examples"] for metrics in clients.values())
    loss = sum(metrics["num_examples"] * metrics["loss"] for metrics in clients.values()) / examples
    return {
        "stage": stage.plan.stage,
        "round": server_round,
        "global_round": stage.plan.first_round + server_round - 1,
        "digest": checkpoint.digest,
        "metrics": {"train/loss": loss, **judged["metrics"], **federated},
        "cohort": accepted["cohort"],
        "clients": clients,
        "failed": accepted["failed"],
        "wall_s": {"round": wall_s, "train": accepted["wall_s"], **judged["wall_s"]},
    }


def _commit(
    stage: Stage, run: runs.Run, records: Sequence[Mapping[str, Any]], *, store: Store, wall_s: float
) -> dict[str, Any]:
    """Commits the stage: its last round's checkpoint becomes its result."""
    plan = stage.plan
    result = read_checkpoint(store, paths.round_checkpoint(stage.key, plan.rounds))
    if result is None:
        raise CheckpointError(f"the last round of stage {plan.stage} is not committed", remedy="run it again")
    predicted = next((cost for cost in run["predicted"] if cost["stage"] == plan.stage), None)
    judged = store.read_ref(paths.round_metrics(stage.key, plan.rounds)) or {"metrics": {}}
    measured = measured_ledger(records, been=clients_before(run, plan.stage, store=store))
    record = {
        "stage": plan.stage,
        "key": stage.key,
        "digest": result.digest,
        "input_digest": stage.input_digest,
        "plan_digest": digest_of(plan.model_dump(mode="json")),
        "rounds": plan.rounds,
        "metrics": dict(records[-1]["metrics"]) if records else judged["metrics"],
        "ledger": {"predicted": predicted, "measured": measured},
        "wall_s": wall_s,
        "reused": False,
    }
    store.write_ref(paths.stage_record(stage.key), record)
    commit = {**replace(result, change={}).to_values(), "made_by": run["run_id"]}
    store.write_ref(paths.stage_checkpoint(stage.key), commit, if_absent=True)
    return record


def _drop_updates(store: Store, stage: Stage, server_round: int) -> None:
    """Removes the tensors of updates that are aggregated; who took part stays written down."""
    for key in list(store.list(f"{paths.round_folder(stage.key, server_round)}/updates/")):
        if key.endswith(".safetensors"):
            store.delete(key)
