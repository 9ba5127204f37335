"""The weights of a round's blended losses, from the records of earlier rounds: so every launcher and resume agree.

Each client reads its own weights in its own folder, since they tell something about its data.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from lwfed import environment
from lwfed.plan.blending import FUSED, Heads, Losses, client_factors, head_weights, rounds_compared
from lwfed.round.context import ClientContext, RoundContext
from lwfed.store import paths
from lwfed.store.refs import damaged, read_object, read_record
from lwfed.types.errors import CheckpointError
from lwfed.types.round_records import RoundRecord


@dataclass(frozen=True, slots=True)
class Blend:
    """The weights of a round.

    Attributes:
        weights: Client -> head -> weight of its loss; what is not in it has weight 1.
        factors: Client -> factor of its update's weight; empty if updates are weighed as without blending.
    """

    weights: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    factors: Mapping[str, int] = field(default_factory=dict)


def blend_of(ctx: RoundContext, cohort: Sequence[str]) -> Blend:
    """Returns the weights of a round; none before its stage has two evaluations.

    Args:
        ctx: The round; all earlier ones have records.
        cohort: Its clients.

    Raises:
        CheckpointError: A record is missing or damaged.
    """
    settings, compared = ctx.plan.model.blending, rounds_compared(ctx.plan, ctx.server_round)
    if settings is None or compared is None:
        return Blend()
    before, after = (_measured(ctx, server_round) for server_round in compared)
    both = [client for client in cohort if client in before and client in after]
    weights = {client: head_weights(before[client], after[client], settings=settings) for client in both}
    if not settings.clients:
        return Blend(weights)
    return Blend(weights, client_factors(cohort, weights, before=before, after=after, settings=settings))


def write_head_weights(ctx: RoundContext, cohort: Sequence[str]) -> None:
    """Writes the weights of each client's losses into its folder, before it trains."""
    if rounds_compared(ctx.plan, ctx.server_round) is not None:
        weights = blend_of(ctx, cohort).weights
        for client in cohort:
            key = paths.head_weights(ctx.key, ctx.server_round, client)
            ctx.store.write_ref(key, {"weights": dict(weights.get(client, {}))}, if_absent=True)


def read_head_weights(ctx: ClientContext) -> Mapping[str, float]:
    """Reads the weights of a client's losses in a round; heads that are not in it have weight 1.

    Raises:
        CheckpointError: They are missing or damaged.
    """
    if rounds_compared(ctx.plan, ctx.server_round) is None:
        return {}
    key = paths.head_weights(ctx.key, ctx.server_round, ctx.client)
    found = read_object(ctx.store, key, weights=dict)
    if found is None:
        raise CheckpointError(f"{key} is not committed", remedy=environment.resume_hint())
    weights: dict[str, float] = found["weights"]
    if not all(isinstance(weight, int | float) and 0 <= weight < math.inf for weight in weights.values()):
        raise damaged(key, "`weights` is wrong")
    return weights


def unblended_text(clients: Sequence[str]) -> str:
    """Returns what becomes of clients that have nothing to be measured on."""
    return (
        f"{', '.join(clients)} hold(s) out fewer than two examples: the losses of the heads are summed there, and the "
        "update weighs as the mean client's"
    )


def blend_metrics(ctx: RoundContext, cohort: Sequence[str], *, accepted: Sequence[str]) -> dict[str, float]:
    """Returns the mean weights of the heads' losses over a round's updates; none if its losses are not blended."""
    if ctx.plan.model.blending is None:
        return {}
    weights = blend_of(ctx, cohort).weights
    return {
        f"blend/{head}/weight": statistics.fmean(weights.get(client, {}).get(head, 1.0) for client in clients)
        for head in (FUSED, *ctx.plan.model.modalities)
        if (clients := [client for client in accepted if head not in ctx.plan.work_of(client).lacks])
    }


def _measured(ctx: RoundContext, server_round: int) -> dict[str, Heads]:
    """Reads the losses that clients had after a round: client -> head -> losses."""
    key = paths.round_record(ctx.key, server_round)
    record = read_record(ctx.store, key, RoundRecord)
    if record is None:
        raise CheckpointError(f"{key} is not committed", remedy=environment.resume_hint())
    return {
        client: {head: Losses(*pair) for head, pair in heads.items()} for client, heads in record.head_losses.items()
    }
