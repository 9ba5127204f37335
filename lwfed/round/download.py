"""A client's download: frozen blocks once, and trained blocks each round, as a published change or in full."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from lwfed import ranks
from lwfed.federated.exchange import add_changes
from lwfed.models.build import tensor_specs
from lwfed.plan.groups import without_modalities
from lwfed.round.context import ClientContext
from lwfed.store import paths
from lwfed.store.ahead import parallel_map
from lwfed.store.blocks import describe, read_block
from lwfed.store.cache import BlockCache
from lwfed.store.checkpoint import Checkpoint, read_checkpoint
from lwfed.store.manifest import block_key
from lwfed.types.errors import CheckpointError


def frozen_cache(ctx: ClientContext) -> BlockCache:
    """Returns the client's own cache of frozen blocks; each rank has one."""
    return BlockCache(ctx.folder(str(ranks.rank())))


def model_cache(ctx: ClientContext) -> BlockCache:
    """Returns the client's own cache of the model that a round starts from; empty unless the exchange is encoded."""
    return BlockCache(ctx.folder(f"model-{ranks.rank()}") if ctx.plan.exchange.lossy else None)


@dataclass(frozen=True)
class Downloaded:
    """A global model, as fetched by a client.

    Attributes:
        tensors: The tensors of the stage's model, on the client's device.
        traffic: `bytes_down` and `bytes_down_frozen`: the bytes that the client fetched.
    """

    tensors: dict[str, Tensor]
    traffic: dict[str, int]


def fetch_model(
    ctx: ClientContext, checkpoint: Checkpoint, *, to_train: bool = True, without: Sequence[str] = ()
) -> Downloaded:
    """Fetches a global model: trained blocks in each round, frozen ones only if the client does not have them.

    Args:
        ctx: The client's part of a round. All bytes it has counted so far were frozen blocks.
        checkpoint: The manifest of the model that the round starts from, or of its result.
        to_train: Whether it is the model that the round starts from.
        without: Modalities whose frozen blocks are not needed because their outputs are cached.

    Raises:
        CheckpointError: A block is missing or corrupted.
    """
    plan = ctx.plan
    lacks = ctx.work.lacks
    needed = without_modalities(plan.frozen, left_out=(*without, *lacks))
    spare = without_modalities(plan.frozen, left_out=lacks)  # evaluation may need them, and inputs drawn later
    frozen = ctx.bench.frozen(
        checkpoint, needed, store=ctx.counted, cache=frozen_cache(ctx), device=ctx.device, spare=spare
    )
    frozen_bytes = ctx.counted.bytes_read
    trained = _fetch_trained(ctx, checkpoint, to_train=to_train)
    traffic = {"bytes_down": ctx.counted.bytes_read - frozen_bytes, "bytes_down_frozen": frozen_bytes}
    return Downloaded(tensors={**frozen, **trained}, traffic=traffic)


def _fetch_trained(ctx: ClientContext, checkpoint: Checkpoint, *, to_train: bool) -> dict[str, Tensor]:
    """Fetches the trained units.

    If a unit's previous state is in the client's folder, only the published change is fetched; otherwise the whole unit
    is. Both give the same bits, which their digests prove. A process that trains several clients has the units in
    memory. The folder keeps the model that a round starts from. Units that only other clients train are fetched too,
    but not those of modalities that the client's data lack.
    """
    units = without_modalities(ctx.plan.trained, left_out=ctx.work.lacks)
    cache, codec, server_round = model_cache(ctx), ctx.plan.exchange.download, ctx.server_round - to_train
    before = None
    if checkpoint.change:
        before = read_checkpoint(ctx.store, paths.round_checkpoint(ctx.key, server_round - 1))
    specs = tensor_specs(ctx.bench.skeleton(ctx.key)) if before else {}

    def fetch(unit: str) -> dict[str, Tensor]:
        block = checkpoint.blocks[unit]
        base = cache.read_cached(before.blocks[unit]) if before and not cache.has(block) else None
        if base is None or unit not in checkpoint.change:
            whole = to_train or cache.has(block)
            return cache.read(ctx.counted, block) if whole else read_block(ctx.counted, block_key(block), block)
        change = checkpoint.change[unit]
        sent = read_block(ctx.counted, block_key(change), change)
        tensors = add_changes(base, sent, specs={name: specs[name] for name in block.tensors}, codec=codec)
        if describe(tensors) != block:
            raise CheckpointError(
                f"the change that round {server_round} published does not reproduce its model in {unit}",
                remedy="remove the client's cache, and train again with --fresh if that does not help",
            )
        if to_train:
            cache.add(block, tensors)
        return tensors

    if ctx.bench.holds_model and not before and cache.is_disabled:
        return ctx.bench.copy_of(checkpoint, units, store=ctx.counted, device=ctx.device)
    fetched = parallel_map(fetch, units)
    if to_train:
        cache.keep_only([checkpoint.blocks[unit] for unit in units])
    return {name: tensor.to(ctx.device) for members in fetched for name, tensor in members.items()}
