"""One round on one screen: sample, train, accept, aggregate, commit.

FedAvg (McMahan et al. 2017, arXiv 1602.05629, Algorithm 1) with a quorum, and with any server optimiser instead of the
plain mean (Reddi et al. 2021, arXiv 2003.00295, Algorithm 1). This is the coordinator's part, which loads no torch;
clients run `train_client.py` and the server `aggregate_round.py`, by default in the same process. Each can be killed at
any point and started again: the accepted set never changes once committed, and committed work is never repeated.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lwfed import environment
from lwfed.plan.cohort import counts_of, sample_round, weights_by_size
from lwfed.round.blending import blend_of, write_head_weights
from lwfed.round.context import RoundContext
from lwfed.round.record import commit_record, evaluate_on_clients, read_record
from lwfed.round.senders import Counted, refuse_gaps
from lwfed.run.events import Aggregating, ClientDone, Emit, RoundDone, RoundStarted
from lwfed.run.held import HeldUpdates, Terms
from lwfed.run.launcher import Launcher
from lwfed.run.overhead import Overhead
from lwfed.store import paths
from lwfed.store.refs import read_object, read_together
from lwfed.store.refs import read_record as read_stored
from lwfed.types.encoded import is_lossless
from lwfed.types.errors import QuorumError
from lwfed.types.round_records import Accepted, AcceptedUpdate, RoundRecord

Measuring = Callable[[Sequence[str]], Collection[str]]
"""Cohort -> the clients of it that measure their first step."""
Deadline = Callable[[Sequence[str]], float]
"""Clients -> the seconds that they have; infinity: no deadline."""


def run_round(
    ctx: RoundContext, *, launcher: Launcher, overhead: Overhead, deadline: Deadline, measuring: Measuring
) -> RoundRecord:
    """Runs a round, or whatever part of it is not committed yet.

    Args:
        ctx: The round.
        launcher: Runs the clients and the server's step.
        overhead: Passes events on and measures the gap between rounds.
        deadline: Clients -> the seconds that they have for training, or for evaluation.
        measuring: Cohort -> the clients that measure their first step; see `lwfed.round.measuring`.

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
    cohort = sample_round(ctx.plan, ctx.server_round, sizes=ctx.stage.sizes)
    emit(RoundStarted(stage=ctx.plan.stage, round=ctx.server_round, cohort=cohort))
    accepted = ctx.accepted()
    if accepted is None:
        training = train_cohort(  # train_client.py
            ctx, cohort, launcher=launcher, emit=emit, deadline_s=deadline(cohort), measuring=measuring(cohort)
        )
        accepted = accept(ctx, cohort, training, held=launcher.held)
    emit(Aggregating(stage=ctx.plan.stage, round=ctx.server_round, clients=len(accepted.clients)))
    launcher.server("aggregate-round", ctx.task, emit=emit)  # aggregate_round.py
    evaluated = evaluate_on_clients(ctx, launcher=launcher, emit=emit, deadline_s=deadline(ctx.plan.cohort.clients))
    return commit_record(ctx, accepted, evaluated, overhead=overhead, wall_s=time.monotonic() - started)


@dataclass(frozen=True, slots=True)
class CohortTraining:
    """How a cohort's training ended.

    Attributes:
        failed: Client -> why it has no update.
        wall_s: Seconds that training took.
        updates: Client -> its update, of those that have been read.
    """

    failed: Mapping[str, str]
    wall_s: float
    updates: Mapping[str, AcceptedUpdate] = field(default_factory=dict)


def train_cohort(
    ctx: RoundContext,
    cohort: Sequence[str],
    *,
    launcher: Launcher,
    emit: Emit,
    deadline_s: float,
    measuring: Collection[str] = (),
) -> CohortTraining:
    """Trains the cohort until enough updates are committed, all clients have ended, or the deadline passes.

    Clients with a committed update are skipped; those that are not needed any more are stopped, and did not fail.

    Args:
        ctx: The round.
        cohort: Its clients.
        launcher: Runs the clients.
        emit: Receives `ClientDone` as each client ends.
        deadline_s: Seconds from now.
        measuring: Clients that measure their first step.
    """
    _begin(ctx, cohort, deadline_s=deadline_s)
    started, held = time.monotonic(), launcher.held
    failed, updates = dict[str, str](), dict[str, AcceptedUpdate]()
    if held is not None:  # updates that an earlier process wrote are made again
        held.begin(ctx.key, ctx.server_round, terms=terms_of(ctx, cohort))
        waiting = list(cohort)
    else:
        there = set(ctx.store.list(paths.all_updates(ctx.key, ctx.server_round)))  # one request, not one per client
        waiting = [client for client in cohort if paths.update(ctx.key, ctx.server_round, client) not in there]
    need = counts_of(ctx.plan.cohort)[0] - (len(cohort) - len(waiting))
    tasks = ctx.client_tasks(waiting if need > 0 else (), measuring=measuring)
    for outcome in launcher.clients("train-client", tasks, need=need, deadline_s=deadline_s, emit=emit):
        update = _update_of(ctx, outcome.client, held)
        if update is None:
            failed[outcome.client] = outcome.reason or "it ended without an update"
        else:
            updates[outcome.client] = update
        emit(
            ClientDone(
                stage=ctx.plan.stage,
                round=ctx.server_round,
                client=outcome.client,
                failed=failed.get(outcome.client),
                metrics=None if update is None else update.metrics.to_values(),
            )
        )
    return CohortTraining(failed=failed, wall_s=time.monotonic() - started, updates=updates)


def accept(
    ctx: RoundContext, cohort: Sequence[str], training: CohortTraining, *, held: HeldUpdates | None = None
) -> Accepted:
    """Commits the accepted set: the updates that are there, up to the number that the round needs.

    If they are in memory, the set is noted there, and written with the round's result.

    Args:
        ctx: The round.
        cohort: Its clients.
        training: How their training ended.
        held: Where the updates are; None: in the store.

    Raises:
        QuorumError: There are too few updates, or too few of a unit, or none of a required client.
    """
    clients: dict[str, AcceptedUpdate] = {}
    need = counts_of(ctx.plan.cohort)[0]
    terms, updates = terms_of(ctx, cohort), _updates_of(ctx, cohort, training, held)
    for client in cohort:
        update = updates.get(client)
        if update is not None and len(clients) < need:
            clients[client] = AcceptedUpdate(
                **({} if update.digest is None else {"digest": update.digest}),
                num_examples=update.num_examples,
                metrics=update.metrics,
                **terms[client].to_values(),
            )
    quorum = ctx.plan.cohort.min_fit_clients
    if len(clients) < quorum:
        raise QuorumError(
            f"round {ctx.server_round} of stage {ctx.plan.stage} has {len(clients)} of {len(cohort)} updates and needs "
            f"{quorum} ({grouped(training.failed)})",
            remedy=f"fix what made them fail; then {environment.resume_hint()}",
        )
    counted = {client: Counted.of(update) for client, update in clients.items()}
    refuse_gaps(
        ctx.plan,
        counted,
        server_round=ctx.server_round,
        failed=training.failed,
        resume=environment.resume_hint(),
    )
    accepted = Accepted(clients=clients, failed=dict(training.failed), cohort=list(cohort), wall_s=training.wall_s)
    if held is not None:
        held.accepted = accepted
        return accepted
    ref = paths.accepted(ctx.key, ctx.server_round)
    if not ctx.store.write_ref(ref, accepted.to_values(), if_absent=True) and ctx.accepted() is None:
        ctx.store.write_ref(ref, accepted.to_values())  # over a set whose updates were lost with a process
    return ctx.accepted() or accepted


def terms_of(ctx: RoundContext, cohort: Sequence[str]) -> dict[str, Terms]:
    """Returns the terms on which the updates of a round's clients count; known before they train."""
    sizes = {client: ctx.stage.sizes.get(client, 1) for client in ctx.plan.cohort.clients}
    sized = ctx.plan.cohort.sampling == "by_size"
    weights = weights_by_size(sizes, count=counts_of(ctx.plan.cohort)[1]) if sized else {}
    factors = blend_of(ctx, cohort).factors
    return {client: Terms(weight=weights.get(client), factor=factors.get(client)) for client in cohort}


def _updates_of(
    ctx: RoundContext, cohort: Sequence[str], training: CohortTraining, held: HeldUpdates | None
) -> Mapping[str, AcceptedUpdate | None]:
    """Returns the updates of a round's clients, without their tensors; those that are not read yet are read."""
    if held is not None:
        return held.updates
    unread = [client for client in cohort if client not in training.updates]
    others = read_together(
        ctx.store, [paths.update(ctx.key, ctx.server_round, client) for client in unread], AcceptedUpdate
    )
    return {**training.updates, **dict(zip(unread, others, strict=True))}


def _update_of(ctx: RoundContext, client: str, held: HeldUpdates | None) -> AcceptedUpdate | None:
    """Returns a client's update in a round, without its tensors; None if there is none."""
    if held is not None:
        return held.updates.get(client)
    return read_stored(ctx.store, paths.update(ctx.key, ctx.server_round, client), AcceptedUpdate)


def grouped(failed: Mapping[str, str]) -> str:
    """Describes why clients failed: each reason once, with its clients; the log lines above have the remedies."""
    clients: dict[str, list[str]] = {}
    for client, reason in sorted(failed.items()):
        clients.setdefault(reason.partition(" -> ")[0], []).append(client)
    return "; ".join(f"{', '.join(names)}: {reason}" for reason, names in clients.items())


def _begin(ctx: RoundContext, cohort: Sequence[str], *, deadline_s: float) -> None:
    """Writes the round's description (`round.json`), for clients and for people, and the weights of their losses."""
    before = read_object(ctx.store, paths.round_checkpoint(ctx.key, ctx.server_round - 1)) or {}
    seconds = deadline_s if math.isfinite(deadline_s) else None
    task: dict[str, Any] = {"cohort": list(cohort), "deadline_s": seconds, "input": before.get("digest")}
    if not is_lossless(ctx.plan.exchange.upload):
        task["counted"] = last_accepted(ctx)
    ctx.store.write_ref(paths.round_task(ctx.key, ctx.server_round), task, if_absent=True)
    write_head_weights(ctx, cohort)


def last_accepted(ctx: RoundContext) -> dict[str, dict[str, Any]]:
    """Returns the round and digest of each client's last accepted update in earlier rounds of the stage.

    Clients choose their residuals by it. An update that stayed in memory has no digest.
    """
    last = ctx.server_round - 1
    if not last:
        return {}
    before = read_object(ctx.store, paths.round_task(ctx.key, last)) or {}
    accepted = read_stored(ctx.store, paths.accepted(ctx.key, last), Accepted) or Accepted(clients={})
    newer = {
        client: {"round": last, **({} if item.digest is None else {"digest": item.digest})}
        for client, item in accepted.clients.items()
    }
    return {**before.get("counted", {}), **newer}
