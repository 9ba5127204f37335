"""The server's part of a round: average the accepted updates tensor by tensor, judge the result, commit it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor

from lwfed import environment
from lwfed.federated.aggregate import check_names, mean_of, normalise_weights, weighted_mean
from lwfed.federated.codecs import decode
from lwfed.federated.exchange import check_specs, publish
from lwfed.federated.server import server_step
from lwfed.models.build import load, tensor_specs
from lwfed.params import DTYPES
from lwfed.plan.stages import StagePlan
from lwfed.round.evaluate import evaluate
from lwfed.round.runtime import computing, pick_device
from lwfed.round.workbench import Workbench
from lwfed.run.stage import Stage
from lwfed.run.tasks import RoundTask
from lwfed.store import paths
from lwfed.store.ahead import together
from lwfed.store.blocks import read_block, read_tensor, write_block
from lwfed.store.cache import BlockCache
from lwfed.store.checkpoint import Checkpoint, read_checkpoint
from lwfed.store.manifest import Block, block_key
from lwfed.store.protocol import Store
from lwfed.types.encoded import Codec, encoded, encoded_specs, is_encoded
from lwfed.types.errors import CheckpointError
from lwfed.types.tensors import TensorSpec

ROUNDED = "rounded"
"""Slot of the server's state that holds what its published changes rounded off."""


def aggregate_round(task: RoundTask, *, bench: Workbench) -> str:
    """Aggregates a round's accepted updates and commits the new global model with its metrics.

    Args:
        task: Which round; its `accepted.json` must be committed.
        bench: The process's bench.

    Returns:
        The new checkpoint's digest.

    Raises:
        CheckpointError: An update is missing, corrupted, or has other tensors than the plan.
    """
    store = bench.store
    committed = paths.round_checkpoint(task.stage_key, task.server_round)
    done = read_checkpoint(store, committed)
    if done is not None:
        return done.digest
    stage = bench.stage(task.stage_key)
    accepted = store.read_ref(paths.accepted(task.stage_key, task.server_round))
    before = read_checkpoint(store, paths.round_checkpoint(task.stage_key, task.server_round - 1))
    if accepted is None or before is None:
        raise CheckpointError(
            f"round {task.server_round} of stage {task.stage_key[:12]} has no accepted set or no input",
            remedy=environment.go_on(),
        )
    started = time.monotonic()
    with computing(threads=1):  # a thread for each unit in work; no sum over a tensor's items, so they change no bit
        after, tensors = _aggregate(task, stage=stage, bench=bench, before=before, accepted=accepted["clients"])
        aggregated = time.monotonic()
        exchange = stage.plan.exchange
        holds = bench.holds_model and exchange.upload == exchange.download == "fp32"  # else clients read changes
        if holds or _due(stage.plan, task.server_round):
            device = pick_device(task.place.device)
            tensors = {name: tensor.to(device) for name, tensor in tensors.items()}
        if holds:
            bench.hold(after, tensors)
    metrics: dict[str, float] = {}
    if _due(stage.plan, task.server_round):
        with computing():
            metrics = judge(after, trained=tensors, bench=bench, stage=stage, task=task)
    walls = {"aggregate": aggregated - started, "evaluate": time.monotonic() - aggregated}
    store.write_ref(paths.round_metrics(task.stage_key, task.server_round), {"metrics": metrics, "wall_s": walls})
    store.write_ref(committed, after.to_values(), if_absent=True)
    return after.digest


def evaluate_round(task: RoundTask, *, bench: Workbench) -> dict[str, float]:
    """Judges a committed round that was not judged, such as round 0 of a last stage that trains nothing.

    Args:
        task: Which round.
        bench: The process's bench.

    Returns:
        Its metrics, which are written beside it.

    Raises:
        CheckpointError: The round is not committed.
    """
    ref = paths.round_metrics(task.stage_key, task.server_round)
    done = bench.store.read_ref(ref)
    if done is not None:
        return done["metrics"]
    checkpoint = read_checkpoint(bench.store, paths.round_checkpoint(task.stage_key, task.server_round))
    if checkpoint is None:
        raise CheckpointError(f"round {task.server_round} is not committed", remedy="start the run again")
    started = time.monotonic()
    with computing():
        metrics = judge(checkpoint, trained={}, bench=bench, stage=bench.stage(task.stage_key), task=task)
    bench.store.write_ref(ref, {"metrics": metrics, "wall_s": {"evaluate": time.monotonic() - started}})
    return metrics


def judge(
    checkpoint: Checkpoint, *, trained: Mapping[str, Tensor], bench: Workbench, stage: Stage, task: RoundTask
) -> dict[str, float]:
    """Evaluates a checkpoint on the test data, using tensors that are at hand already."""
    plan = stage.plan
    device = pick_device(task.place.device)
    source = bench.data(stage, task.place)
    missing = [unit for unit in plan.present if not any(name in trained for name in checkpoint.blocks[unit].tensors)]
    frozen = bench.frozen(checkpoint, missing, store=bench.store, cache=BlockCache(None), device=device)
    module = load(bench.skeleton(stage.key), {**frozen, **trained})
    metrics = evaluate(
        module,
        source=source,
        examples=bench.examples(stage, task.place, "test"),
        inputs=bench.inputs(stage),
        model=plan.model,
        evaluation=plan.evaluation,
        workers=task.place.workers,
        device=device,
    )
    module.to("meta")  # the bench keeps it, and not its weights
    return metrics


def _due(plan: StagePlan, server_round: int) -> bool:
    return server_round == plan.rounds or server_round % plan.evaluation.every == 0


@dataclass(frozen=True)
class _Averaged:
    """A unit of the new global model: its block, the published change's, the server's state's, and its tensors."""

    block: Block
    change: Block | None
    server: Block | None
    tensors: dict[str, Tensor]


def _aggregate(
    task: RoundTask, *, stage: Stage, bench: Workbench, before: Checkpoint, accepted: Mapping[str, Any]
) -> tuple[Checkpoint, dict[str, Tensor]]:
    """Gives the new checkpoint and its trained tensors; a few units are in work at a time, of each one tensor."""
    plan = stage.plan
    updates = {client: _read_update(task, bench, client, item["digest"]) for client, item in accepted.items()}
    weights = normalise_weights({client: item["num_examples"] for client, item in accepted.items()})
    specs = tensor_specs(bench.skeleton(stage.key))
    unit_specs = {unit: {name: specs[name] for name in before.blocks[unit].tensors} for unit in plan.trained}
    for unit, members in unit_specs.items():
        for client, update in updates.items():
            expected = set(encoded_specs(members, plan.exchange.upload))
            check_names(client, names=set(update[unit].tensors), expected=expected)
            check_specs(client, found=update[unit].specs, specs=members, codec=plan.exchange.upload)
    totals = None
    if bench.running_sum is not None:
        digests = {client: item["digest"] for client, item in accepted.items()}
        totals = bench.running_sum.take(task.stage_key, task.server_round, accepted=digests)

    def average(unit: str) -> _Averaged:
        blocks = {
            client: (f"{paths.updates(task.stage_key, task.server_round, client)}/{update[unit].digest}", update[unit])
            for client, update in updates.items()
        }
        means = partial(_mean, store=bench.store, blocks=blocks, weights=weights, totals=totals, plan=plan)
        return _average(
            unit, means=means, specs=unit_specs[unit], before=before, plan=plan, store=bench.store,
            seed=plan.round_seed(task.server_round, "download"),
        )  # fmt: skip

    done = dict(zip(plan.trained, together(average, plan.trained), strict=True))
    checkpoint = Checkpoint(
        blocks={**before.blocks, **{unit: one.block for unit, one in done.items()}},
        server={unit: one.server for unit, one in done.items() if one.server is not None},
        change={unit: one.change for unit, one in done.items() if one.change is not None},
    )
    return checkpoint, {name: tensor for one in done.values() for name, tensor in one.tensors.items()}


def _mean(
    name: str,
    *,
    spec: TensorSpec,
    start: Tensor | None,
    store: Store,
    blocks: Mapping[str, tuple[str, Block]],
    weights: Mapping[str, int],
    totals: dict[str, Tensor] | None,
    plan: StagePlan,
) -> Tensor:
    """Gives the mean of one tensor: of the sum that is there already, or of what clients' files hold."""
    if totals is not None:
        dtype = DTYPES[spec.dtype]
        return mean_of(totals.pop(name), sum_of_weights=sum(weights.values()), dtype=dtype, start=start)
    codec = plan.exchange.upload
    readers = {
        client: partial(_read_sent, store, f"{key}.safetensors", block, spec=spec, codec=codec)
        for client, (key, block) in blocks.items()
    }
    return weighted_mean(name, readers=readers, weights=weights, start=start)


def _average(
    unit: str,
    *,
    means: Callable[..., Tensor],
    specs: Mapping[str, TensorSpec],
    before: Checkpoint,
    plan: StagePlan,
    store: Store,
    seed: str,
) -> _Averaged:
    """Makes a unit of the new global model and writes it, one tensor at a time."""
    exchange, step = plan.exchange, server_step(plan.server)
    plain = plan.server.kind == "fedavg" and plan.server.rate == 1
    old = before.blocks[unit]
    state = _read_state(store, before.server.get(unit))
    tensors, states, sent = dict[str, Tensor](), dict[str, Tensor](), dict[str, Tensor]()
    for name, spec in specs.items():
        up, down = is_encoded(spec, exchange.upload), is_encoded(spec, exchange.download)
        steps = not spec.buffer and spec.dtype.startswith(("F", "BF")) and not plain
        theta = read_tensor(store, block_key(old), old, name) if up or down or steps else None
        tensors[name] = mean = means(name, spec=spec, start=theta if up else None)
        slots = {slot: tensor for (owner, slot), tensor in state.items() if owner == name}
        rounded = slots.pop(ROUNDED, None)
        if steps and theta is not None:
            tensors[name], slots = step(theta, mean, slots)
            states |= {f"{name}:{slot}": tensor for slot, tensor in slots.items()}
        if down and theta is not None:
            parts, tensors[name], states[f"{name}:{ROUNDED}"] = publish(
                name, tensors[name], before=theta, kept=rounded, codec=exchange.download, seed=seed
            )
            sent |= parts
        else:
            sent[name] = tensors[name]
    return _Averaged(
        block=write_block(store, tensors),
        change=write_block(store, sent) if exchange.download != "fp32" else None,
        server=write_block(store, states) if states else None,
        tensors=tensors,
    )


def _read_sent(store: Store, key: str, block: Block, name: str, *, spec: TensorSpec, codec: Codec) -> Tensor:
    """Reads what a client sent of a tensor: its value, or the change that it decodes to."""
    if not is_encoded(spec, codec):
        return read_tensor(store, key, block, name)
    return decode(name, {part: read_tensor(store, key, block, part) for part in encoded(name, spec, codec)})


def _read_update(task: RoundTask, bench: Workbench, client: str, digest: str) -> dict[str, Block]:
    update = bench.store.read_ref(paths.update(task.stage_key, task.server_round, client))
    if update is None or update["digest"] != digest:
        raise CheckpointError(
            f"the accepted update of {client} is missing or changed", remedy="remove the round's folder and run again"
        )
    return {unit: Block.from_values(values) for unit, values in update["blocks"].items()}


def _read_state(store: Store, block: Block | None) -> dict[tuple[str, str], Tensor]:
    if block is None:
        return {}
    tensors = read_block(store, block_key(block), block)
    return {(name.rpartition(":")[0], name.rpartition(":")[2]): tensor for name, tensor in tensors.items()}
