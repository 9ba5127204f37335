"""A client's upload: its trained tensors, encoded by the plan's codec, a few units at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from lwfed import ranks
from lwfed.federated.exchange import upload
from lwfed.params import by_unit
from lwfed.round.context import ClientContext
from lwfed.round.download import model_cache
from lwfed.round.residuals import Residuals, open_residuals
from lwfed.store import paths
from lwfed.store.ahead import parallel_map
from lwfed.store.blocks import write_block
from lwfed.store.manifest import Block
from lwfed.types.canonical import digest_of
from lwfed.types.encoded import is_encoded, is_lossless
from lwfed.types.tensors import TensorSpec

Start = Callable[[str], Mapping[str, Tensor]]
"""Unit -> those of its parameters that are sent as changes, with their values at the start of the round."""


def remember_start(ctx: ClientContext, tensors: Mapping[str, Tensor], *, specs: Mapping[str, TensorSpec]) -> Start:
    """Remembers the values that changes are computed from, since training overwrites them in place.

    They are read again from the client's own folder when needed; without a folder, a copy stays in host memory.

    Args:
        ctx: The client's part of the round.
        tensors: The model's tensors, before training.
        specs: Their types and shapes.
    """
    codec = ctx.plan.exchange.upload
    if is_lossless(codec) or ranks.rank():  # only the first rank uploads
        return lambda unit: {}
    checkpoint, cache = ctx.start(), model_cache(ctx)
    copies: dict[str, dict[str, Tensor]] = {}
    for unit in ctx.work.trained:
        if not cache.has(checkpoint.blocks[unit]):
            members = {name: tensors[name] for name in checkpoint.blocks[unit].tensors}
            copies[unit] = {n: t.detach().cpu().clone() for n, t in members.items() if is_encoded(specs[n], codec)}
    return lambda unit: copies[unit] if unit in copies else cache.read(ctx.store, checkpoint.blocks[unit])


SMALL = 8 << 20
"""Bytes below which an update is encoded and written by a single thread."""


@dataclass(frozen=True)
class Sent:
    """An update whose tensors are written.

    Attributes:
        blocks: Its blocks, by unit.
        digest: Its digest.
        tensors: The tensors as sent, on the CPU; empty unless `keep` was set.
        metrics: `residual` (fresh, used or lost) and `residual_kept`, if changes are encoded.
    """

    blocks: dict[str, Block]
    digest: str
    tensors: dict[str, Tensor]
    metrics: dict[str, Any]


def send(
    ctx: ClientContext, trained: Mapping[str, Tensor], *, start: Start, specs: Mapping[str, TensorSpec], keep: bool
) -> Sent:
    """Writes an update's tensors and keeps their rounding error; does not commit the update itself.

    Args:
        ctx: The client's part of the round.
        trained: The trained tensors.
        start: The values that training started from.
        specs: Types and shapes of the trained tensors.
        keep: Whether to return the tensors that were sent.

    Raises:
        DivergedError: A change is not finite.
        CheckpointError: The round has not started.
    """
    folder = paths.updates(ctx.key, ctx.server_round, ctx.client)
    units, codec, seed = by_unit(trained), ctx.plan.exchange.upload, ctx.seed(ctx.client, "upload")
    residuals = open_residuals(ctx)

    def write(unit: str) -> tuple[dict[str, Tensor], Block, Block | None, bool]:
        before = residuals.read(unit)
        sent, left = upload(units[unit], start=start(unit), residual=before or {}, specs=specs, codec=codec, seed=seed)
        return sent if keep else {}, write_block(ctx.counted, sent, key=folder), residuals.write(left), before is None

    done = dict(zip(units, parallel_map(write, units, threads=_threads(trained)), strict=True))
    blocks = {unit: block for unit, (_, block, _, _) in done.items()}
    digest = digest_of_blocks(blocks)
    metrics: dict[str, Any] = {}
    if not is_lossless(codec):
        lost = any(missing for _, _, _, missing in done.values())
        left = {unit: block for unit, (_, _, block, _) in done.items()}
        metrics = _keep_residuals(ctx, residuals, left, digest=digest, lost=lost)
    tensors = {name: tensor for sent, _, _, _ in done.values() for name, tensor in sent.items()}
    return Sent(blocks=blocks, digest=digest, tensors=tensors, metrics=metrics)


@dataclass(frozen=True)
class Held:
    """An update that stays in memory.

    Attributes:
        tensors: The tensors as they would be sent, on the CPU.
        nbytes: Bytes of the files that would be sent.
        metrics: See `Sent`.
    """

    tensors: Mapping[str, Tensor]
    nbytes: int
    metrics: dict[str, Any]


def hold(ctx: ClientContext, trained: Mapping[str, Tensor], *, start: Start, specs: Mapping[str, TensorSpec]) -> Held:
    """Encodes an update as `send` does, and keeps its rounding error, but writes none of its tensors.

    Args:
        ctx: The client's part of the round.
        trained: The trained tensors, on the CPU.
        start: The values that training started from.
        specs: Types and shapes of the trained tensors.

    Raises:
        DivergedError: A change is not finite.
        CheckpointError: The round has not started.
    """
    codec, nbytes = ctx.plan.exchange.upload, ctx.bench.upload_bytes(ctx.key, ctx.work.trained)
    if is_lossless(codec):
        return Held(tensors=trained, nbytes=nbytes, metrics={})
    units, seed = by_unit(trained), ctx.seed(ctx.client, "upload")
    residuals = open_residuals(ctx)

    def encode(unit: str) -> tuple[dict[str, Tensor], Block | None, bool]:
        before = residuals.read(unit)
        sent, left = upload(units[unit], start=start(unit), residual=before or {}, specs=specs, codec=codec, seed=seed)
        return sent, residuals.write(left), before is None

    done = dict(zip(units, parallel_map(encode, units, threads=_threads(trained)), strict=True))
    lost = any(missing for _, _, missing in done.values())
    metrics = _keep_residuals(ctx, residuals, {unit: left for unit, (_, left, _) in done.items()}, lost=lost)
    tensors = {name: tensor for sent, _, _ in done.values() for name, tensor in sent.items()}
    return Held(tensors=tensors, nbytes=nbytes, metrics=metrics)


def _threads(trained: Mapping[str, Tensor]) -> int | None:
    """Returns the number of threads for an update: one for a small one, whose work is done before others have begun."""
    return 1 if sum(tensor.nbytes for tensor in trained.values()) < SMALL else None


def _keep_residuals(
    ctx: ClientContext,
    residuals: Residuals,
    left: Mapping[str, Block | None],
    *,
    digest: str | None = None,
    lost: bool,
) -> dict[str, Any]:
    """Records an update's residual and removes those that no longer count; returns the metrics of both."""
    kept = residuals.commit(left, digest=digest)
    residuals.prune(_stages_before(ctx, residuals))
    return {"residual": "lost" if lost else residuals.state, "residual_kept": kept}


def digest_of_blocks(blocks: Mapping[str, Block]) -> str:
    """Returns an update's digest, which covers every tensor as sent."""
    return digest_of({name: digest for block in blocks.values() for name, (digest, _) in block.tensors.items()})


def _stages_before(ctx: ClientContext, residuals: Residuals) -> Iterator[str]:
    """Yields the keys of a run's other stages, which are over by now; none if no residuals are kept."""
    if residuals.store is None or ctx.run_id is None or ctx.server_round > 1:
        return
    run = ctx.store.read_ref(paths.run(ctx.run_id)) or {"stages": []}
    yield from (item["key"] for item in run["stages"])
