"""A client's upload: what it trained, as it is or as an encoded change; a few units at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from lwfed import ranks
from lwfed.federated.exchange import upload
from lwfed.models.build import tensor_specs
from lwfed.params import by_unit
from lwfed.round.download import model_cache
from lwfed.round.residuals import Kept, open_kept
from lwfed.round.workbench import Workbench
from lwfed.run.stage import Stage
from lwfed.run.tasks import ClientTask
from lwfed.store import paths
from lwfed.store.ahead import together
from lwfed.store.blocks import write_block
from lwfed.store.checkpoint import read_checkpoint
from lwfed.store.manifest import Block
from lwfed.store.protocol import Store
from lwfed.types.canonical import digest_of
from lwfed.types.encoded import is_encoded
from lwfed.types.tensors import TensorSpec

Start = Callable[[str], Mapping[str, Tensor]]
"""Gives the parameters of a unit as the round found them."""


def start_of(task: ClientTask, *, bench: Workbench, stage: Stage, tensors: Mapping[str, Tensor]) -> Start:
    """Remembers what a round starts from, since training changes it in place.

    It is read again from the client's own folder when it is needed; without one, a copy is held on the host.

    Args:
        task: Which client and round.
        bench: The process's bench.
        stage: The stage.
        tensors: The model's tensors, before any training.
    """
    codec = stage.plan.exchange.upload
    checkpoint = read_checkpoint(bench.store, paths.round_checkpoint(stage.key, task.server_round - 1))
    if codec == "fp32" or checkpoint is None or ranks.rank():  # one rank speaks for all
        return lambda unit: {}
    specs = tensor_specs(bench.skeleton(stage.key))
    cache = model_cache(task, stage.plan)
    copies: dict[str, dict[str, Tensor]] = {}
    for unit in stage.plan.trained:
        if not cache.has(checkpoint.blocks[unit]):
            members = {name: tensors[name] for name in checkpoint.blocks[unit].tensors}
            copies[unit] = {n: t.detach().cpu().clone() for n, t in members.items() if is_encoded(specs[n], codec)}
    return lambda unit: copies[unit] if unit in copies else cache.read(bench.store, checkpoint.blocks[unit])


@dataclass(frozen=True)
class Sent:
    """An update whose tensors are written.

    Attributes:
        blocks: What it holds, by unit.
        digest: Its digest.
        tensors: The tensors as they were sent, on the CPU; none unless they were asked for.
        metrics: `residual` (fresh, used or lost) and `residual_kept`, where changes are encoded.
    """

    blocks: dict[str, Block]
    digest: str
    tensors: dict[str, Tensor]
    metrics: dict[str, Any]


def send(
    task: ClientTask,
    *,
    bench: Workbench,
    stage: Stage,
    store: Store,
    trained: Mapping[str, Tensor],
    start: Start,
    specs: Mapping[str, TensorSpec],
    keep: bool,
) -> Sent:
    """Writes an update's tensors, and keeps what was rounded off; the update itself is not committed yet.

    Args:
        task: Which client and round.
        bench: The process's bench.
        stage: The stage.
        store: Where to.
        trained: What was trained.
        start: What training started from.
        specs: Types and shapes of what was trained.
        keep: Whether to give what was sent.

    Raises:
        DivergedError: A change is not finite.
        CheckpointError: The round is not begun.
    """
    folder = paths.updates(task.stage_key, task.server_round, task.client)
    units, exchange = by_unit(trained), stage.plan.exchange
    if exchange.upload == "fp32":

        def write(unit: str) -> tuple[dict[str, Tensor], Block]:
            sent = {name: tensor.cpu() for name, tensor in units[unit].items()}
            return sent if keep else {}, write_block(store, sent, key=folder)

        whole = together(write, units)
        blocks = {unit: block for unit, (_, block) in zip(units, whole, strict=True)}
        tensors = {name: tensor for sent, _ in whole for name, tensor in sent.items()}
        return Sent(blocks=blocks, digest=digest_of_blocks(blocks), tensors=tensors, metrics={})
    kept = open_kept(task, store=store)
    seed = stage.plan.round_seed(task.server_round, task.client, "upload")

    def encode(unit: str) -> tuple[dict[str, Tensor], Block, Block | None, bool]:
        before = kept.read(unit)
        sent, left = upload(
            units[unit], start=start(unit), kept=before or {}, specs=specs, codec=exchange.upload, seed=seed
        )
        return sent if keep else {}, write_block(store, sent, key=folder), kept.write(left), before is None

    done = dict(zip(units, together(encode, units), strict=True))
    blocks = {unit: block for unit, (_, block, _, _) in done.items()}
    digest = digest_of_blocks(blocks)
    is_kept = kept.commit({unit: left for unit, (_, _, left, _) in done.items()}, digest=digest)
    kept.prune(_stages_before(task, store=store, kept=kept))
    lost = any(missing for _, _, _, missing in done.values())
    return Sent(
        blocks=blocks,
        digest=digest,
        tensors={name: tensor for sent, _, _, _ in done.values() for name, tensor in sent.items()},
        metrics={"residual": "lost" if lost else kept.state, "residual_kept": is_kept},
    )


def digest_of_blocks(blocks: Mapping[str, Block]) -> str:
    """Gives an update's digest: of every tensor as it was sent."""
    return digest_of({name: digest for block in blocks.values() for name, (digest, _) in block.tensors.items()})


def _stages_before(task: ClientTask, *, store: Store, kept: Kept) -> Iterator[str]:
    """Yields the keys of a run's other stages, which are over when this one is in work; none where nothing is kept."""
    if kept.store is None or task.run_id is None or task.server_round > 1:
        return
    run = store.read_ref(paths.run(task.run_id)) or {"stages": []}
    yield from (item["key"] for item in run["stages"])
