"""The server's part of a round as a step: aggregate the accepted updates, evaluate the result, commit it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import lru_cache

from torch import Tensor

from lwfed import environment
from lwfed.federated.aggregator import GlobalModel, make_aggregator
from lwfed.models.build import tensor_specs
from lwfed.plan.stages import StagePlan
from lwfed.round.accept import read_accepted
from lwfed.round.context import RoundContext
from lwfed.round.evaluate_round import evaluate_checkpoint
from lwfed.round.round import aggregate
from lwfed.round.runtime import deterministic, pick_device
from lwfed.round.updates import RunningFold, read_updates
from lwfed.round.workbench import Workbench
from lwfed.run.tasks import RoundTask
from lwfed.store import paths
from lwfed.store.ahead import num_threads
from lwfed.store.blocks import read_tensor
from lwfed.store.manifest import block_key
from lwfed.types.errors import CheckpointError
from lwfed.types.tensors import unit_of


def aggregate_round(task: RoundTask, *, bench: Workbench, running: RunningFold | None = None) -> str:
    """Aggregates a round's accepted updates and commits the new global model with its metrics.

    Args:
        task: The round; its accepted set must be committed.
        bench: The process's workbench.
        running: Updates folded as they arrived; if they are not the accepted set, the updates are read from the store.

    Returns:
        The new checkpoint's digest.

    Raises:
        CheckpointError: An update is missing or corrupted, or its tensors are not those of the plan.
    """
    ctx = bench.round(task)
    done = ctx.result()
    if done is not None:
        return done.digest
    accepted = read_accepted(ctx)
    if accepted is None:
        raise CheckpointError(
            f"round {ctx.server_round} of stage {ctx.key[:12]} has no accepted set", remedy=environment.resume_hint()
        )
    clients, plan = accepted.clients, ctx.plan
    started = time.monotonic()
    with deterministic(threads=1):  # one thread per unit in work; no sum runs over a tensor's items, so no bit changes
        model = global_model(ctx, bench=bench)
        digests = {client: item.digest for client, item in clients.items()}
        made = aggregate(
            ctx,
            aggregator=make_aggregator(plan.aggregators, model=model),
            updates=read_updates(ctx, clients, model=model),
            model=model,
            folded=None if running is None else running.take(ctx.key, ctx.server_round, accepted=digests),
        )
        aggregated = time.monotonic()
        tensors: Mapping[str, Tensor] = made.tensors
        holds = bench.holds_model and not plan.exchange.lossy  # otherwise clients read changes
        if holds or is_due(plan, ctx.server_round):
            device = pick_device(ctx.place.device)
            tensors = {name: tensor.to(device) for name, tensor in tensors.items()}
        if holds:
            bench.hold(made.checkpoint, tensors)
    metrics = dict(made.metrics)
    if is_due(plan, ctx.server_round):
        with deterministic():
            metrics |= evaluate_checkpoint(ctx, made.checkpoint, trained=tensors, bench=bench)
    walls = {"aggregate": aggregated - started, "evaluate": time.monotonic() - aggregated}
    ctx.store.write_ref(paths.round_metrics(ctx.key, ctx.server_round), {"metrics": metrics, "wall_s": walls})
    committed = paths.round_checkpoint(ctx.key, ctx.server_round)
    ctx.store.write_ref(committed, made.checkpoint.to_values(), if_absent=True)
    return made.checkpoint.digest


def global_model(ctx: RoundContext, *, bench: Workbench) -> GlobalModel:
    """Returns the model that a round's clients started from; each tensor is read on demand."""
    before, trained = ctx.start(), set(ctx.plan.trained)
    specs = {n: spec for n, spec in tensor_specs(bench.skeleton(ctx.key)).items() if unit_of(n) in trained}

    @lru_cache(maxsize=num_threads())  # one per unit in work
    def start(name: str) -> Tensor:
        block = before.blocks[unit_of(name)]
        return read_tensor(ctx.store, block_key(block), block, name)

    return GlobalModel(specs=specs, codec=ctx.plan.exchange.upload, start=start)


def is_due(plan: StagePlan, server_round: int) -> bool:
    """Returns whether a round's result is due for evaluation on the test data."""
    return server_round == plan.rounds or server_round % plan.evaluation.every == 0
