"""The server's part of a round as a step: aggregate the accepted updates, step the model, evaluate it, commit it."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Self

from torch import Tensor

from lwfed import environment
from lwfed.federated.aggregator import Aggregator, GlobalModel, Update, fold, make_aggregator
from lwfed.federated.exchange import publish
from lwfed.federated.server import server_step
from lwfed.models.build import tensor_specs
from lwfed.plan.gates import is_still
from lwfed.plan.stages import StagePlan
from lwfed.round.context import RoundContext
from lwfed.round.evaluate_round import evaluate_checkpoint
from lwfed.round.held_fold import HeldFold
from lwfed.round.memory import give_back
from lwfed.round.movement import movement_metrics
from lwfed.round.runtime import deterministic, pick_device
from lwfed.round.senders import Counted, kept_units, weights_of
from lwfed.round.updates import RunningFold, read_updates, small_units
from lwfed.round.workbench import Workbench
from lwfed.run.tasks import RoundTask
from lwfed.store import paths
from lwfed.store.ahead import num_threads, parallel_map
from lwfed.store.blocks import read_block, read_tensor, write_block
from lwfed.store.checkpoint import Checkpoint
from lwfed.store.manifest import Block, block_key
from lwfed.types.errors import CheckpointError
from lwfed.types.round_records import Accepted
from lwfed.types.tensors import unit_of

ROUNDED = "rounded"
"""Slot of the server's state that holds the rounding error of its published changes."""


def aggregate_round(
    task: RoundTask, *, bench: Workbench, running: RunningFold | None = None, held: HeldRound | None = None
) -> str:
    """Aggregates a round's accepted updates and commits the new global model with its metrics.

    Args:
        task: The round; its accepted set must be committed, or be in `held`.
        bench: The process's workbench.
        running: Updates folded as they arrived; if they are not the accepted set, the updates are read from the store.
        held: The accepted set and its sums, if the updates stayed in memory.

    Returns:
        The new checkpoint's digest.

    Raises:
        CheckpointError: An update is missing or corrupted, or its tensors are not those of the plan.
    """
    ctx = bench.round(task)
    done = ctx.result()
    if done is not None:
        return done.digest
    accepted = ctx.accepted() if held is None else held.accepted
    if accepted is None:
        raise CheckpointError(
            f"round {ctx.server_round} of stage {ctx.key[:12]} has no accepted set", remedy=environment.resume_hint()
        )
    clients, plan = accepted.clients, ctx.plan
    started = time.monotonic()
    with deterministic(threads=1):  # one thread per unit in work; no sum runs over a tensor's items, so no bit changes
        model = global_model(ctx, bench=bench)
        aggregator = make_aggregator(plan.aggregators, model=model)  # the weighted mean, in the plan's wrappers
        weights = weights_of(plan, {client: Counted.of(item) for client, item in clients.items()})
        folded: Mapping[str, Any] | None = None
        if held is not None:
            aggregator, folded = held.sums(ctx)
        elif running is not None:
            digests = {client: item.digest or "" for client, item in clients.items()}
            folded = running.take(ctx.key, ctx.server_round, accepted=digests, weights=weights)
        made = aggregate(
            ctx,
            aggregator=aggregator,
            updates=read_updates(ctx, clients, model=model) if folded is None else (),
            model=model,
            kept=kept_units(plan, weights),
            folded=folded,
        )
        metrics = made.metrics | movement_metrics(ctx, made.tensors, model=model)
        aggregated = time.monotonic()
        tensors: Mapping[str, Tensor] = made.tensors
        holds = bench.holds_model and not plan.exchange.lossy  # otherwise clients read changes
        due = is_due(plan, ctx.server_round, metrics)
        if holds or due:
            device = pick_device(ctx.place.device)
            tensors = {name: tensor.to(device) for name, tensor in tensors.items()}
        if holds:
            bench.hold(made.checkpoint, tensors)
    if due:
        with deterministic():
            metrics |= evaluate_checkpoint(ctx, made.checkpoint, trained=tensors, bench=bench)
    walls = {"aggregate": aggregated - started, "evaluate": time.monotonic() - aggregated}
    ctx.store.write_ref(paths.round_metrics(ctx.key, ctx.server_round), {"metrics": metrics, "wall_s": walls})
    if held is not None:  # it counts only with the checkpoint
        ctx.store.write_ref(paths.accepted(ctx.key, ctx.server_round), accepted.to_values())
    committed = paths.round_checkpoint(ctx.key, ctx.server_round)
    ctx.store.write_ref(committed, made.checkpoint.to_values(), if_absent=True)
    digest = made.checkpoint.digest
    del made, tensors
    give_back()
    return digest


@dataclass(frozen=True)
class HeldRound:
    """A round whose updates stayed in memory.

    Attributes:
        accepted: Its accepted set.
        fold: The sums of its updates.
    """

    accepted: Accepted
    fold: HeldFold | None

    def sums(self, ctx: RoundContext) -> tuple[Aggregator, dict[str, Any]]:
        """Returns the aggregator and the states. Raises CheckpointError if they are not those of the accepted set."""
        taken = None if self.fold is None else self.fold.take(self.accepted.clients)
        if taken is None:
            raise CheckpointError(
                f"the updates of round {ctx.server_round} of stage {ctx.plan.stage} are no longer in memory",
                remedy=environment.resume_hint(),
            )
        return taken


@dataclass(frozen=True)
class NewTensor:
    """A tensor of the new global model.

    Attributes:
        value: theta.
        sent: The tensors that clients receive for it.
        state: Slot -> the server's state.
        encoded: Whether clients receive an encoded change.
    """

    value: Tensor
    sent: Mapping[str, Tensor]
    state: Mapping[str, Tensor]
    encoded: bool


@dataclass(frozen=True)
class NewUnit:
    """A unit of the new global model: blocks of its values, its published change and its server state; its tensors."""

    block: Block
    change: Block | None
    server: Block | None
    tensors: dict[str, Tensor]


@dataclass(frozen=True)
class Aggregated:
    """A new global model that is written but not committed yet.

    Attributes:
        checkpoint: Its manifest.
        tensors: Its trained tensors, on the CPU.
        metrics: The aggregator's metrics.
    """

    checkpoint: Checkpoint
    tensors: dict[str, Tensor]
    metrics: dict[str, float]

    @classmethod
    def of(cls, before: Checkpoint, units: Mapping[str, NewUnit], *, metrics: dict[str, float]) -> Self:
        """Replaces units of the previous checkpoint with new ones."""
        checkpoint = Checkpoint(
            blocks={**before.blocks, **{unit: new.block for unit, new in units.items()}},
            server={
                **{unit: block for unit, block in before.server.items() if unit not in units},
                **{unit: new.server for unit, new in units.items() if new.server is not None},
            },
            change={unit: new.change for unit, new in units.items() if new.change is not None},
        )
        tensors = {name: tensor for new in units.values() for name, tensor in new.tensors.items()}
        return cls(checkpoint=checkpoint, tensors=tensors, metrics=metrics)


def aggregate(
    ctx: RoundContext,
    *,
    aggregator: Aggregator,
    updates: Sequence[Update],
    model: GlobalModel,
    kept: Collection[str] = (),
    folded: Mapping[str, Any] | None = None,
) -> Aggregated:
    """Computes the new global model, a few units at a time and one tensor at a time within each unit.

    Args:
        ctx: The round.
        aggregator: Combines the updates into one.
        updates: The accepted updates, in sorted client order.
        model: The model that the clients started from.
        kept: Units that too few clients sent: they and the server's state of them stay as they were.
        folded: The aggregator's states, if the updates were added as they arrived.

    Returns:
        The new checkpoint, with its blocks already written, its trained tensors, and the aggregator's metrics.

    Raises:
        CheckpointError: A tensor is missing or corrupted.
        DivergedError: A change to be published is not finite.
    """
    before = ctx.start()
    if folded is None:
        aggregator = aggregator.survey(updates)
    small = small_units(model)

    def new_unit(unit: str) -> NewUnit:
        states = read_states(ctx, before, unit)
        new: dict[str, NewTensor] = {}
        names = before.blocks[unit].tensors
        sums = folded if folded is not None else fold(aggregator, updates, names=names) if unit in small else {}
        for name in names:
            if name not in sums:
                sums = fold(aggregator, updates, names=[name])
            mean = model.value(name, aggregator.finish(sums[name], name=name))
            new[name] = step_and_publish(ctx, name, mean, model=model, state=states.get(name, {}))
        return write_unit(ctx, new)

    sent = [unit for unit in ctx.plan.trained if unit not in kept]
    units = dict(zip(sent, parallel_map(new_unit, sent), strict=True))
    return Aggregated.of(before, units, metrics=aggregator.metrics())


def read_states(ctx: RoundContext, before: Checkpoint, unit: str) -> dict[str, dict[str, Tensor]]:
    """Reads a unit's server state after the previous round: tensor -> slot -> state; empty at a stage's start."""
    block = before.server.get(unit)
    states: dict[str, dict[str, Tensor]] = {}
    for name, tensor in read_block(ctx.store, block_key(block), block).items() if block is not None else ():
        owner, _, slot = name.rpartition(":")
        states.setdefault(owner, {})[slot] = tensor
    return states


def step_and_publish(
    ctx: RoundContext, name: str, mean: Tensor, *, model: GlobalModel, state: Mapping[str, Tensor]
) -> NewTensor:
    """Applies the server's step to the aggregated tensor and encodes the change that clients receive.

    Args:
        ctx: The round.
        name: The tensor.
        mean: Its aggregated value.
        model: The model that the clients started from.
        state: The server's state after the previous round.
    """
    plan, slots = ctx.plan, dict(state)
    rounded = slots.pop(ROUNDED, None)
    theta = mean
    if name in model.parameters and not plan.server.is_identity:
        theta, slots = server_step(plan.server)(model.start(name), mean, slots)
    published = publish(
        name,
        theta,
        start=model.start,
        residual=rounded,
        spec=model.specs[name],
        codec=plan.exchange.download,
        seed=ctx.seed("download"),
    )
    if published.left is not None:
        slots[ROUNDED] = published.left
    return NewTensor(published.value, published.sent, slots, encoded=published.left is not None)


def write_unit(ctx: RoundContext, new: Mapping[str, NewTensor]) -> NewUnit:
    """Writes a unit's tensors, their published change, and the server's state."""
    tensors = {name: item.value for name, item in new.items()}
    sent = {part: tensor for item in new.values() for part, tensor in item.sent.items()}
    states = {f"{name}:{slot}": tensor for name, item in new.items() for slot, tensor in item.state.items()}
    return NewUnit(
        block=write_block(ctx.store, tensors),
        change=write_block(ctx.store, sent) if any(item.encoded for item in new.values()) else None,
        server=write_block(ctx.store, states) if states else None,
        tensors=tensors,
    )


def global_model(ctx: RoundContext, *, bench: Workbench) -> GlobalModel:
    """Returns the model that a round's clients started from; each tensor is read on demand."""
    before, trained = ctx.start(), set(ctx.plan.trained)
    specs = {n: spec for n, spec in tensor_specs(bench.skeleton(ctx.key)).items() if unit_of(n) in trained}

    @lru_cache(maxsize=num_threads())  # one per unit in work
    def start(name: str) -> Tensor:
        block = before.blocks[unit_of(name)]
        return read_tensor(ctx.store, block_key(block), block, name)

    return GlobalModel(specs=specs, codec=ctx.plan.exchange.upload, start=start)


def is_due(plan: StagePlan, server_round: int, metrics: Mapping[str, float]) -> bool:
    """Returns whether a round's result is due for evaluation on the test data; a stage's last round always is."""
    return server_round == plan.rounds or server_round % plan.evaluation.every == 0 or is_still(plan, metrics)
