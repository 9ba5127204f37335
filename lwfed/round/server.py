"""The server's step on one tensor, and the blocks that store the new global model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from torch import Tensor

from lwfed.federated.aggregator import GlobalModel
from lwfed.federated.exchange import publish
from lwfed.federated.server import server_step
from lwfed.round.context import RoundContext
from lwfed.store.blocks import read_block, write_block
from lwfed.store.checkpoint import Checkpoint
from lwfed.store.manifest import Block, block_key

ROUNDED = "rounded"
"""Slot of the server's state that holds the rounding error of its published changes."""


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
            server={unit: new.server for unit, new in units.items() if new.server is not None},
            change={unit: new.change for unit, new in units.items() if new.change is not None},
        )
        tensors = {name: tensor for new in units.values() for name, tensor in new.tensors.items()}
        return cls(checkpoint=checkpoint, tensors=tensors, metrics=metrics)


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
