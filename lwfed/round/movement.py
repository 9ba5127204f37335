"""The movement of a round's parameters: metrics by which a gate may end the stage."""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import Tensor

from lwfed.federated.aggregator import GlobalModel
from lwfed.federated.movement import distance, effective_movement
from lwfed.params import by_unit
from lwfed.plan.gates import EFFECTIVE_MOVEMENT, UPDATE_NORM
from lwfed.plan.stages import MovementGate
from lwfed.round.context import RoundContext
from lwfed.store import paths
from lwfed.store.ahead import parallel_map
from lwfed.store.blocks import read_tensor
from lwfed.store.manifest import block_key
from lwfed.store.refs import damaged, read_record
from lwfed.types.round_records import RoundMetrics
from lwfed.types.tensors import unit_of


def movement_metrics(ctx: RoundContext, tensors: Mapping[str, Tensor], *, model: GlobalModel) -> dict[str, float]:
    """Returns the metrics of a round's movement; none if the plan has no gate that reads them.

    Besides the new model, memory holds one tensor of the model before the round and one of the model before the gate's
    window, for each unit in work. Buffers and integers do not count.

    Args:
        ctx: The round.
        tensors: The trained tensors of its result that changed, on the CPU.
        model: The model that its clients started from.

    Raises:
        CheckpointError: A model or a record that the gate reads is missing or corrupted.
    """
    gate = ctx.plan.gate
    if not isinstance(gate, MovementGate):
        return {}
    first = ctx.server_round - gate.window
    before = ctx.committed(first) if first >= 0 else None

    def moved(names: Mapping[str, str]) -> tuple[float, float]:
        step, net = [], []
        for name in names:
            start = model.start(name)
            new = tensors.get(name, start)  # a unit that too few clients sent stays as it was
            step.append(distance(new, start))
            if before is not None:
                block = before.blocks[unit_of(name)]
                net.append(distance(new, read_tensor(ctx.store, block_key(block), block, name)))
        return math.fsum(step), math.fsum(net)

    units = by_unit({name: name for name in model.parameters})
    steps, nets = zip(*parallel_map(moved, list(units.values())), strict=True)
    step = math.fsum(steps)
    if before is None:
        return {UPDATE_NORM: step}
    earlier = [update_norm(ctx, server_round) for server_round in range(first + 1, ctx.server_round)]
    return {UPDATE_NORM: step, EFFECTIVE_MOVEMENT: effective_movement(math.fsum(nets), [*earlier, step])}


def update_norm(ctx: RoundContext, server_round: int) -> float:
    """Reads the norm of an earlier round's update. Raises CheckpointError if its metrics lack it."""
    key = paths.round_metrics(ctx.key, server_round)
    found = read_record(ctx.store, key, RoundMetrics)
    if found is None or UPDATE_NORM not in found.metrics:
        raise damaged(key, f"it lacks {UPDATE_NORM}")
    return found.metrics[UPDATE_NORM]
