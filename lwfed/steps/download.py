"""A client's download of what is trained: the change that the server published, or the model as it is."""

from __future__ import annotations

import torch
from torch import Tensor

from lwfed import ranks
from lwfed.federated.exchange import add_changes
from lwfed.models.build import tensor_specs
from lwfed.plan.stages import StagePlan
from lwfed.steps.tasks import ClientTask
from lwfed.steps.workbench import Stage, Workbench
from lwfed.store import paths
from lwfed.store.ahead import together
from lwfed.store.blocks import block_key, describe, read_block
from lwfed.store.cache import BlockCache
from lwfed.store.checkpoint import Checkpoint, read_checkpoint
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
    store: Store,
    checkpoint: Checkpoint,
    server_round: int,
    keep: bool,
    device: torch.device,
) -> dict[str, Tensor]:
    """Fetches the trained units of a round's result.

    A unit whose state of the round before lies in the client's folder needs the published change alone; any other is
    fetched whole. Both are the same bits, which their digests prove.

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

    fetched = together(fetch, stage.plan.trained)
    if keep:
        cache.keep_only([checkpoint.blocks[unit] for unit in stage.plan.trained])
    return {name: tensor.to(device) for members in fetched for name, tensor in members.items()}
