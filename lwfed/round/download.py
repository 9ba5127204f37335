"""A client's download: frozen blocks once, and of what is trained the published change, or the model as it is."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lwfed import environment, ranks
from lwfed.federated.exchange import add_changes
from lwfed.models.build import tensor_specs
from lwfed.plan.stages import StagePlan
from lwfed.round.workbench import Workbench
from lwfed.run.stage import Stage
from lwfed.run.tasks import ClientTask
from lwfed.store import paths
from lwfed.store.ahead import together
from lwfed.store.blocks import describe, read_block
from lwfed.store.cache import BlockCache
from lwfed.store.checkpoint import Checkpoint, read_checkpoint
from lwfed.store.counting import CountingStore
from lwfed.store.manifest import block_key
from lwfed.store.protocol import Store
from lwfed.types.errors import CheckpointError


def model_cache(task: ClientTask, plan: StagePlan) -> BlockCache:
    """Gives the client's own folder for the model a round starts from; nothing is kept where nothing is encoded."""
    wanted = task.place.cache and (plan.exchange.upload, plan.exchange.download) != ("fp32", "fp32")
    return BlockCache(f"{task.place.cache}/{task.client}/model-{ranks.rank()}" if wanted else None)


def fetch_trained(
    task: ClientTask,
    *,
    bench: Workbench,
    stage: Stage,
    store: CountingStore,
    checkpoint: Checkpoint,
    server_round: int,
    keep: bool,
    device: torch.device,
) -> dict[str, Tensor]:
    """Fetches the trained units of a round's result.

    A unit whose state of the round before lies in the client's folder needs the published change alone; any other is
    fetched whole. Both are the same bits, which their digests prove. A process that trains several clients has them at
    hand.

    Args:
        task: Which client, and where its folder is.
        bench: The process's bench.
        stage: The stage.
        store: Where from; it may count.
        checkpoint: The round's result.
        server_round: The round, 0 for the stage's start.
        keep: Whether the client's folder shall hold this model from now on.
        device: Where to.

    Raises:
        CheckpointError: A block is missing or corrupted.
    """
    cache, codec = model_cache(task, stage.plan), stage.plan.exchange.download
    before = None
    if checkpoint.change:
        before = read_checkpoint(bench.store, paths.round_checkpoint(stage.key, server_round - 1))
    specs = tensor_specs(bench.skeleton(stage.key)) if before else {}

    def fetch(unit: str) -> dict[str, Tensor]:
        block = checkpoint.blocks[unit]
        base = cache.held(before.blocks[unit]) if before and not cache.has(block) else None
        if base is None or unit not in checkpoint.change:
            return cache.read(store, block) if keep or cache.has(block) else read_block(store, block_key(block), block)
        change = checkpoint.change[unit]
        sent = read_block(store, block_key(change), change)
        tensors = add_changes(base, sent, specs={name: specs[name] for name in block.tensors}, codec=codec)
        if describe(tensors) != block:
            raise CheckpointError(
                f"the change that round {server_round} published does not lead to its model in {unit}",
                remedy="remove the client's cache, and train anew with --fresh if that does not help",
            )
        if keep:
            cache.add(block, tensors)
        return tensors

    if bench.holds_model and not before and cache.keeps_nothing:
        return bench.copy_of(checkpoint, stage.plan.trained, store=store, device=device)
    fetched = together(fetch, stage.plan.trained)
    if keep:
        cache.keep_only([checkpoint.blocks[unit] for unit in stage.plan.trained])
    return {name: tensor.to(device) for members in fetched for name, tensor in members.items()}


def manifest_of(task: ClientTask, *, stage: Stage, store: Store, round_offset: int = 1) -> Checkpoint:
    """Reads the manifest of the global model.

    Args:
        task: Which client and round.
        stage: The stage.
        store: Where it is.
        round_offset: 1 for the model a round starts from, 0 for its result.

    Raises:
        CheckpointError: The model is missing, or another stage's.
    """
    key = paths.round_checkpoint(stage.key, task.server_round - round_offset)
    checkpoint = read_checkpoint(store, key)
    if checkpoint is None:
        raise CheckpointError(f"{key} is not committed", remedy=environment.go_on())
    _check_units(checkpoint, stage.plan)
    return checkpoint


def fetch_model(
    task: ClientTask,
    checkpoint: Checkpoint,
    *,
    bench: Workbench,
    stage: Stage,
    store: CountingStore,
    device: torch.device,
    round_offset: int = 1,
    without: Sequence[str] = (),
) -> tuple[dict[str, Tensor], dict[str, int]]:
    """Fetches the global model: trained blocks anew, frozen ones only where the client has not got them.

    Args:
        task: Which client and round.
        checkpoint: Its manifest.
        bench: The process's bench.
        stage: The stage.
        store: Counts what is fetched; what it has counted so far was frozen blocks.
        device: Where to.
        round_offset: As `manifest_of` took it.
        without: Modalities whose frozen blocks are not needed: their outputs are kept.

    Returns:
        The tensors of the stage's model, and the bytes fetched.

    Raises:
        CheckpointError: A block is missing or corrupted.
    """
    server_round = task.server_round - round_offset
    cache = BlockCache(f"{task.place.cache}/{task.client}/{ranks.rank()}" if task.place.cache else None)
    needed = [unit for unit in stage.plan.frozen if unit.partition(".")[0] not in without]
    judged = stage.plan.frozen if stage.plan.evaluation.federated_every else ()  # whole, every few rounds
    frozen = bench.frozen(checkpoint, needed, store=store, cache=cache, device=device, spare=judged)
    frozen_bytes = store.bytes_read
    trained = fetch_trained(
        task, bench=bench, stage=stage, store=store, checkpoint=checkpoint, server_round=server_round,
        keep=round_offset == 1, device=device,
    )  # fmt: skip
    traffic = {"bytes_down": store.bytes_read - frozen_bytes, "bytes_down_frozen": frozen_bytes}
    return {**frozen, **trained}, traffic


def _check_units(checkpoint: Checkpoint, plan: StagePlan) -> None:
    if set(checkpoint.blocks) != set(plan.present):
        odd = sorted(set(checkpoint.blocks) ^ set(plan.present))
        raise CheckpointError(f"the checkpoint and the plan differ in {odd[0]}", remedy="train anew with --fresh")
