"""Evaluation of a round's result on the server's test and validation data."""

from __future__ import annotations

import time
from collections.abc import Mapping

from torch import Tensor

from lwfed.models.build import load
from lwfed.round.context import RoundContext
from lwfed.round.evaluate import evaluate
from lwfed.round.forward import forward_of
from lwfed.round.runtime import deterministic, pick_device
from lwfed.round.workbench import Workbench
from lwfed.run.tasks import RoundTask
from lwfed.store import paths
from lwfed.store.cache import BlockCache
from lwfed.store.checkpoint import Checkpoint
from lwfed.store.refs import read_record
from lwfed.types.round_records import RoundMetrics


def evaluate_round(task: RoundTask, *, bench: Workbench) -> dict[str, float]:
    """Evaluates a committed round that has no metrics yet, such as round 0 of a last stage that trains nothing.

    Args:
        task: The round.
        bench: The process's workbench.

    Returns:
        Its metrics, which are also written next to the round.

    Raises:
        CheckpointError: The round is not committed.
    """
    ctx = bench.round(task)
    ref = paths.round_metrics(ctx.key, ctx.server_round)
    done = read_record(ctx.store, ref, RoundMetrics)
    if done is not None:
        return done.metrics
    started = time.monotonic()
    with deterministic():
        metrics = evaluate_checkpoint(ctx, ctx.outcome(), trained={}, bench=bench)
    ctx.store.write_ref(ref, {"metrics": metrics, "wall_s": {"evaluate": time.monotonic() - started}})
    return metrics


def evaluate_checkpoint(
    ctx: RoundContext, checkpoint: Checkpoint, *, trained: Mapping[str, Tensor], bench: Workbench
) -> dict[str, float]:
    """Evaluates a checkpoint on the test and validation data, reusing the trained tensors already in memory."""
    plan, device = ctx.plan, pick_device(ctx.place.device)
    missing = [unit for unit in plan.present if not any(name in trained for name in checkpoint.blocks[unit].tensors)]
    frozen = bench.frozen(checkpoint, missing, store=ctx.store, cache=BlockCache(None), device=device)
    module = load(bench.skeleton(ctx.key), {**frozen, **trained})
    forward = forward_of(plan, checkpoint, kept=bench.outputs)
    metrics: dict[str, float] = {}
    for split in ("test", "validation"):
        known = bench.examples(ctx.stage, ctx.place, split)
        examples = bench.unchanged(ctx.stage, ctx.place, known)
        if len(examples) < len(known):
            metrics[f"{split}/changed_files"] = len(known) - len(examples)
        if examples:
            metrics |= evaluate(
                module,
                source=bench.data(ctx.stage, ctx.place),
                examples=examples,
                inputs=bench.inputs(ctx.stage),
                model=plan.model,
                evaluation=plan.evaluation,
                workers=ctx.place.workers,
                device=device,
                prefix=split,
                forward=forward,
            )
    module.slots.empty()  # the bench keeps it, and not its weights
    return metrics
