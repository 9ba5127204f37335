"""The server's part of a round: average the accepted updates tensor by tensor, judge the result, commit it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

from torch import Tensor

from lwfed.federated.aggregate import Reader, check_names, normalise_weights, weighted_mean
from lwfed.federated.codecs import decode
from lwfed.federated.exchange import check_specs, publish
from lwfed.federated.server import server_step
from lwfed.models.build import load, tensor_specs
from lwfed.plan.stages import StagePlan
from lwfed.steps.evaluate import evaluate
from lwfed.steps.runtime import computing, pick_device
from lwfed.steps.tasks import RoundTask
from lwfed.steps.workbench import Stage, Workbench
from lwfed.store import paths
from lwfed.store.ahead import ahead
from lwfed.store.blocks import Block, block_key, read_block, read_tensor, write_block
from lwfed.store.cache import BlockCache
from lwfed.store.checkpoint import Checkpoint, read_checkpoint
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
            remedy="start the run again with the same --run-id",
        )
    with computing():  # no sum over a tensor's items: threads change no bit
        started = time.monotonic()
        after, tensors = _aggregate(task, stage=stage, bench=bench, before=before, accepted=accepted["clients"])
        aggregated = time.monotonic()
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
    tensors = {**frozen, **{name: tensor.to(device) for name, tensor in trained.items()}}
    module = load(bench.skeleton(stage.key), tensors)
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


def _aggregate(
    task: RoundTask, *, stage: Stage, bench: Workbench, before: Checkpoint, accepted: Mapping[str, Any]
) -> tuple[Checkpoint, dict[str, Tensor]]:
    """Gives the new checkpoint and its trained tensors; one unit of them is built at a time."""
    store, plan = bench.store, stage.plan
    updates = {client: _read_update(task, bench, client, item["digest"]) for client, item in accepted.items()}
    weights = normalise_weights({client: item["num_examples"] for client, item in accepted.items()})
    specs, exchange = tensor_specs(bench.skeleton(stage.key)), plan.exchange
    step = server_step(plan.server)
    plain = plan.server.kind == "fedavg" and plan.server.rate == 1
    seed = plan.round_seed(task.server_round, "download")
    blocks, server, kept = dict(before.blocks), dict[str, Block](), dict[str, Tensor]()
    changes: dict[str, Block] = {}
    for unit in plan.trained:
        old = before.blocks[unit]
        unit_specs = {name: specs[name] for name in old.tensors}
        keys: dict[str, tuple[str, Block]] = {}
        for client, update in updates.items():
            block = update[unit]
            check_names(client, names=set(block.tensors), expected=set(encoded_specs(unit_specs, exchange.upload)))
            check_specs(client, found=block.specs, specs=unit_specs, codec=exchange.upload)
            key = f"{paths.updates(task.stage_key, task.server_round, client)}/{block.digest}.safetensors"
            keys[client] = key, block
        # in the order in which the mean asks: the next tensor is read and checked while one is added
        tensors_in_order = ahead(
            partial(_read_sent, store, *keys[client], name, unit_specs[name], exchange.upload)
            for name in old.tensors
            for client in sorted(keys)
        )
        readers = dict.fromkeys(keys, _next_of(tensors_in_order))
        state = _read_state(store, before.server.get(unit))
        tensors, states, sent = dict[str, Tensor](), dict[str, Tensor](), dict[str, Tensor]()
        for name, spec in unit_specs.items():
            up, down = is_encoded(spec, exchange.upload), is_encoded(spec, exchange.download)
            steps = not spec.buffer and spec.dtype.startswith(("F", "BF")) and not plain
            theta = read_tensor(store, block_key(old), old, name) if up or down or steps else None
            mean = weighted_mean(name, readers=readers, weights=weights, start=theta if up else None)
            slots = {slot: tensor for (owner, slot), tensor in state.items() if owner == name}
            rounded = slots.pop(ROUNDED, None)
            tensors[name] = mean
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
        blocks[unit] = write_block(store, tensors)
        if exchange.download != "fp32":
            changes[unit] = write_block(store, sent)
        if states:
            server[unit] = write_block(store, states)
        kept |= tensors
    return Checkpoint(blocks=blocks, server=server, change=changes), kept


def _read_sent(store: Any, key: str, block: Block, name: str, spec: TensorSpec, codec: Codec) -> Tensor:
    """Reads what a client sent of a tensor: its value, or the change that it decodes to."""
    if not is_encoded(spec, codec):
        return read_tensor(store, key, block, name)
    return decode(name, {part: read_tensor(store, key, block, part) for part in encoded(name, spec, codec)})


def _next_of(tensors: Iterator[Tensor]) -> Reader:
    """Makes a reader of tensors that come in the order in which they are asked for."""
    return lambda _name: next(tensors)


def _read_update(task: RoundTask, bench: Workbench, client: str, digest: str) -> dict[str, Block]:
    update = bench.store.read_ref(paths.update(task.stage_key, task.server_round, client))
    if update is None or update["digest"] != digest:
        raise CheckpointError(
            f"the accepted update of {client} is missing or changed", remedy="remove the round's folder and run again"
        )
    return {unit: Block.from_values(values) for unit, values in update["blocks"].items()}


def _read_state(store: Any, block: Block | None) -> dict[tuple[str, str], Tensor]:
    if block is None:
        return {}
    tensors = read_block(store, block_key(block), block)
    return {(name.rpartition(":")[0], name.rpartition(":")[2]): tensor for name, tensor in tensors.items()}
