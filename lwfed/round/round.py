"""One round on one screen: sample, train, accept, aggregate, step, commit.

FedAvg (McMahan et al. 2017, arXiv 1602.05629, Algorithm 1) with a quorum, and with any server optimiser instead of the
plain mean (Reddi et al. 2021, arXiv 2003.00295, Algorithm 1). Two processes share a round: the coordinator, which does
not load torch, runs `run_round`; the server's machine runs `aggregate`. Either can be killed at any point and started
again: the accepted set never changes once committed, and committed work is never repeated.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lwfed.round.accept import accept, read_accepted, sample_cohort, train
from lwfed.round.context import RoundContext
from lwfed.round.record import commit_record, evaluate_on_clients, read_record
from lwfed.run.events import Aggregating, RoundDone, RoundStarted
from lwfed.run.launcher import Launcher
from lwfed.run.overhead import Overhead
from lwfed.types.records import RoundRecord

if TYPE_CHECKING:
    from lwfed.federated.aggregator import Aggregator, GlobalModel, Update
    from lwfed.round.server import Aggregated, NewTensor, NewUnit


def run_round(ctx: RoundContext, *, launcher: Launcher, overhead: Overhead, deadline_s: float) -> RoundRecord:
    """Runs a round, or whatever part of it is not committed yet.

    Args:
        ctx: The round.
        launcher: Runs the clients and the server's step.
        overhead: Passes events on and measures the gap between rounds.
        deadline_s: Seconds that the cohort has for training.

    Returns:
        The RoundRecord.

    Raises:
        QuorumError: Too few updates arrived.
        CheckpointError: An object is missing or corrupted.
    """
    emit = overhead.emit
    record = read_record(ctx)
    if record is not None:
        emit(RoundDone(record=record))
        return record
    started = time.monotonic()
    cohort = sample_cohort(ctx)
    emit(RoundStarted(stage=ctx.plan.stage, round=ctx.server_round, cohort=cohort))
    accepted = read_accepted(ctx)
    if accepted is None:
        trained = train(ctx, cohort, launcher=launcher, emit=emit, deadline_s=deadline_s)
        accepted = accept(ctx, cohort, trained)
    emit(Aggregating(stage=ctx.plan.stage, round=ctx.server_round, clients=len(accepted.clients)))
    launcher.server("aggregate-round", ctx.task, emit=emit)  # runs `aggregate`, below
    evaluated = evaluate_on_clients(ctx, launcher=launcher, emit=emit, deadline_s=deadline_s)
    return commit_record(ctx, accepted, evaluated, overhead=overhead, wall_s=time.monotonic() - started)


def aggregate(
    ctx: RoundContext,
    *,
    aggregator: Aggregator,
    updates: Sequence[Update],
    model: GlobalModel,
    folded: Mapping[str, Any] | None = None,
) -> Aggregated:
    """Computes the new global model, a few units at a time and one tensor at a time within each unit.

    Args:
        ctx: The round.
        aggregator: Combines the updates into one.
        updates: The accepted updates, in sorted client order.
        model: The model that the clients started from.
        folded: The aggregator's states, if the updates were added as they arrived.

    Returns:
        The new checkpoint, with its blocks already written, its trained tensors, and the aggregator's metrics.

    Raises:
        CheckpointError: A tensor is missing or corrupted.
        DivergedError: A change to be published is not finite.
    """
    from lwfed.federated.aggregator import fold
    from lwfed.round.server import Aggregated, read_states, step_and_publish, write_unit
    from lwfed.store.ahead import parallel_map

    before = ctx.start()
    if folded is None:
        aggregator = aggregator.survey(updates)

    def new_unit(unit: str) -> NewUnit:
        states = read_states(ctx, before, unit)
        new: dict[str, NewTensor] = {}
        for name in before.blocks[unit].tensors:
            sums = folded if folded is not None else fold(aggregator, updates, names=[name])
            mean = model.value(name, aggregator.finish(sums[name], name=name))
            new[name] = step_and_publish(ctx, name, mean, model=model, state=states.get(name, {}))
        return write_unit(ctx, new)

    units = dict(zip(ctx.plan.trained, parallel_map(new_unit, ctx.plan.trained), strict=True))
    return Aggregated.of(before, units, metrics=aggregator.metrics())
