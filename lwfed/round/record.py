"""The record of a finished round: its metrics, its costs, and what went wrong."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from lwfed import environment
from lwfed.plan.blending import Heads, losses_of
from lwfed.plan.gates import progress
from lwfed.round.blending import blend_metrics, unblended_text
from lwfed.round.context import RoundContext
from lwfed.round.senders import Counted, kept_units, weights_of
from lwfed.run.events import Emit, RoundDone, Warning
from lwfed.run.launcher import Launcher
from lwfed.run.measured import lost_in, pooled, recomputed_in, unkept_in
from lwfed.run.overhead import Overhead
from lwfed.store import paths
from lwfed.store.checkpoint import Checkpoint
from lwfed.store.refs import read_record as read_stored
from lwfed.store.refs import read_together
from lwfed.types.errors import CheckpointError
from lwfed.types.round_records import Accepted, ClientMetrics, RoundMetrics, RoundRecord


@dataclass(frozen=True, slots=True)
class Evaluated:
    """The clients' evaluation on their held-out examples.

    Attributes:
        metrics: Their pooled metrics; empty if no evaluation was due.
        head_losses: Client -> head -> its losses, if losses are blended.
        failed: Client -> why it reported none.
        wall_s: Seconds that evaluation took; None if none was due.
    """

    metrics: Mapping[str, float] = field(default_factory=dict)
    head_losses: Mapping[str, Heads] = field(default_factory=dict)
    failed: Mapping[str, str] = field(default_factory=dict)
    wall_s: float | None = None


def evaluate_on_clients(ctx: RoundContext, *, launcher: Launcher, emit: Emit, deadline_s: float) -> Evaluated:
    """Evaluates a round's result on all clients, if that is due.

    Args:
        ctx: The committed round.
        launcher: Runs the clients.
        emit: Receives a warning for each client that failed to evaluate.
        deadline_s: Seconds from now.
    """
    every = ctx.plan.evaluation.federated_every
    if not every or (ctx.server_round % every and not _is_last(ctx)):
        return Evaluated()
    started = time.monotonic()
    clients = ctx.plan.cohort.clients
    failed: dict[str, str] = {}
    tasks = ctx.client_tasks(clients)
    for outcome in launcher.clients("evaluate-client", tasks, deadline_s=deadline_s, emit=emit):
        if outcome.exit_code:
            failed[outcome.client] = outcome.reason
            emit(Warning(message=f"{outcome.client} could not evaluate: {outcome.reason}"))
    parts = {}
    keys = [paths.client_evaluation(ctx.key, ctx.server_round, client) for client in clients]
    for client, value in zip(clients, read_together(ctx.store, keys, ClientMetrics), strict=True):
        if value is not None and value.num_examples:
            parts[client] = (value.num_examples, value.metrics)
    losses: dict[str, Heads] = {}
    if ctx.plan.model.blending is not None:
        found = {client: losses_of(one, modalities=ctx.plan.model.modalities) for client, (_, one) in parts.items()}
        losses = {client: heads for client, heads in found.items() if heads}
        unmeasured = [client for client in clients if client not in losses and client not in failed]
        if unmeasured and ctx.server_round == every:  # once in a stage
            emit(Warning(message=unblended_text(unmeasured)))
    return Evaluated(metrics=pooled(parts), head_losses=losses, failed=failed, wall_s=time.monotonic() - started)


def _is_last(ctx: RoundContext) -> bool:
    """Whether a committed round is its stage's last."""
    if ctx.plan.gate is None or ctx.server_round == ctx.plan.rounds:
        return ctx.server_round == ctx.plan.rounds
    keys = [paths.round_metrics(ctx.key, number) for number in range(1, ctx.server_round + 1)]
    found = [read_stored(ctx.store, key, RoundMetrics) for key in keys]
    return progress(ctx.plan, [{} if one is None else one.metrics for one in found]).over


def read_record(ctx: RoundContext) -> RoundRecord | None:
    """Reads a round's record, or None if the round is not over."""
    return read_stored(ctx.store, paths.round_record(ctx.key, ctx.server_round), RoundRecord)


def commit_record(
    ctx: RoundContext, accepted: Accepted, evaluated: Evaluated, *, overhead: Overhead, wall_s: float
) -> RoundRecord:
    """Writes a round's record, emits its warnings, and removes the updates, which are no longer needed.

    Args:
        ctx: The round.
        accepted: The accepted updates.
        evaluated: The clients' evaluation.
        overhead: Has the gap before this round's clients; passes the record and the warnings on.
        wall_s: Wall-clock seconds of the round.

    Returns:
        The RoundRecord.

    Raises:
        CheckpointError: The round's result is not committed.
    """
    result = ctx.result()
    if result is None:
        raise CheckpointError(
            f"round {ctx.server_round} of stage {ctx.plan.stage} was not committed", remedy=environment.resume_hint()
        )
    _drop_updates(ctx)
    record = _round_record(ctx, result, accepted, evaluated, wall_s=wall_s)
    record = record.changed(wall_s=record.wall_s | overhead.close_round(record.wall_s))
    for message in _warnings(record):
        overhead.emit(Warning(message=message))
    ctx.store.write_ref(paths.round_record(ctx.key, ctx.server_round), record.to_values())
    overhead.emit(RoundDone(record=record))
    return record


def _round_record(
    ctx: RoundContext, result: Checkpoint, accepted: Accepted, evaluated: Evaluated, *, wall_s: float
) -> RoundRecord:
    key = paths.round_metrics(ctx.key, ctx.server_round)
    on_server = read_stored(ctx.store, key, RoundMetrics) or RoundMetrics(metrics={})
    clients = {client: update.metrics for client, update in sorted(accepted.clients.items())}
    examples = sum(metrics.num_examples for metrics in clients.values())
    loss = sum(metrics.num_examples * metrics.loss for metrics in clients.values()) / examples
    walls = {"round": wall_s, "train": accepted.wall_s, **on_server.wall_s}
    if evaluated.wall_s is not None:
        walls["evaluate_clients"] = evaluated.wall_s
    counted = {client: Counted.of(update) for client, update in accepted.clients.items()}
    troubles = {
        "failed_evaluations": dict(evaluated.failed),
        "recomputed_prefixes": recomputed_in(clients),
        "lost_residuals": lost_in(clients),
        "changed_files": {client: one.changed_files for client, one in clients.items() if one.changed_files},
        "kept_units": list(kept_units(ctx.plan, weights_of(ctx.plan, counted))),
        "head_losses": {client: dict(heads) for client, heads in evaluated.head_losses.items()},
    }
    return RoundRecord(
        stage=ctx.plan.stage,
        round=ctx.server_round,
        global_round=(ctx.stage.first_round or ctx.plan.first_round) + ctx.server_round - 1,
        digest=result.digest,
        metrics={
            "train/loss": loss,
            **on_server.metrics,
            **evaluated.metrics,
            **blend_metrics(ctx, accepted.cohort, accepted=list(clients)),
        },
        cohort=accepted.cohort,
        clients=clients,
        failed=accepted.failed,
        wall_s=walls,
        **{name: value for name, value in troubles.items() if value},
    )


def _warnings(record: RoundRecord) -> list[str]:
    """Returns warnings about a round that succeeded."""
    found = []
    unkept = unkept_in(record.clients)
    if unkept:
        client, why = min(unkept.items())
        found.append(f"{len(unkept)} client(s) keep nothing between rounds; {client}: {why}")
    if record.recomputed_prefixes:
        client, why = min(record.recomputed_prefixes.items())
        found.append(
            f"frozen blocks of {len(record.recomputed_prefixes)} client(s) run again in each step; {client}: {why}"
        )
    if record.lost_residuals:
        lost = ", ".join(record.lost_residuals)
        found.append(f"{lost} lost the rounding error of the last upload: equal runs may differ")
    if record.changed_files:
        clients = ", ".join(record.changed_files)
        total = sum(record.changed_files.values())
        found.append(f"{total} example(s) of {clients} are left out: their files changed after the run was prepared")
    if record.kept_units:
        units = ", ".join(record.kept_units[:5]) + (" ..." if len(record.kept_units) > 5 else "")
        found.append(f"{len(record.kept_units)} unit(s) stay as they were, since too few clients sent them: {units}")
    return found


def _drop_updates(ctx: RoundContext) -> None:
    """Removes the tensors of aggregated updates; the record of who took part stays."""
    found = ctx.store.list(paths.all_updates(ctx.key, ctx.server_round))
    ctx.store.delete(*[key for key in found if key.endswith(".safetensors")])
