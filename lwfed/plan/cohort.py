"""Seeded sampling of a round's clients, and their weights in its mean."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import TYPE_CHECKING

from lwfed.spec.federation import FederationSpec
from lwfed.types.errors import QuorumError
from lwfed.types.seeds import derive

if TYPE_CHECKING:  # a plan names its clients by this module
    from lwfed.plan.stages import CohortPlan, StagePlan


def client_ids(num_clients: int) -> tuple[str, ...]:
    """Returns the clients' ids: `client-000`, `client-001` ..."""
    width = max(3, len(str(num_clients - 1)))
    return tuple(f"client-{n:0{width}d}" for n in range(num_clients))


def eligible_clients(federation: FederationSpec) -> tuple[str, ...]:
    """Returns the ids of the clients that take part: the first int(`eligible_fraction` x N)."""
    return client_ids(federation.clients)[: federation.eligible]


def counts_of(cohort: CohortPlan) -> tuple[int, int]:
    """Returns how many updates a round needs and how many clients it asks (Bonawitz et al. 2019, arXiv 1902.01046).

    Returns:
        `max(int(N x fraction_fit), min_fit_clients)` of the N that take part, and `oversample` times as many, rounded
        up; at most N.
    """
    available = len(cohort.clients)
    need = max(int(available * cohort.fraction_fit), cohort.min_fit_clients)
    more = Fraction(str(cohort.oversample or 1))
    return need, min(math.ceil(need * more), available)


def sample_round(plan: StagePlan, server_round: int, *, sizes: Mapping[str, int]) -> tuple[str, ...]:
    """Samples the clients that a round asks.

    Args:
        plan: The stage.
        server_round: r, counted from 1 within the stage.
        sizes: Client -> number of its examples; clients that are not in it count as equally large.

    Returns:
        Ids: as many as the round needs, sorted, then the spares, sorted.

    Raises:
        QuorumError: Fewer clients are available than needed.
    """
    cohort = plan.cohort
    clients = cohort.clients
    fewest = max(cohort.min_fit_clients, cohort.min_available_clients)
    if len(clients) < fewest:
        raise QuorumError(
            f"{len(clients)} clients are available and {fewest} are needed",
            remedy="lower federation.min_fit_clients or min_available_clients, or give more clients data",
        )
    need, ask = counts_of(cohort)
    seed = plan.round_seed(server_round, "cohort")
    match cohort.sampling:
        case "round_robin":
            drawn = in_turn(
                derive(plan.seed, "round_robin"), clients, start=(plan.first_round + server_round - 2) * need
            )
        case "by_size":
            drawn = by_size(seed, sizes={client: sizes.get(client, 1) for client in clients}, count=ask)
        case _:
            drawn = uniformly(seed, clients)
    return (*sorted(drawn[:need]), *sorted(drawn[need:ask]))


def uniformly(seed: str, clients: Sequence[str]) -> list[str]:
    """Returns clients in a seeded order: by the hashes of (seed, id), whatever their order or the library."""
    return sorted(clients, key=lambda client: derive(seed, client))


def in_turn(seed: str, clients: Sequence[str], *, start: int) -> list[str]:
    """Returns clients in the same seeded order in every round, from a place on; the first follows the last."""
    order = uniformly(seed, clients)
    start %= len(order)
    return order[start:] + order[:start]


def by_size(seed: str, *, sizes: Mapping[str, int], count: int) -> list[str]:
    """Draws clients without replacement, each with a probability proportional to its size.

    Systematic sampling (Madow 1949) in a seeded order: client k is drawn with probability n_k K / n exactly, where K
    clients of n examples in all are drawn. A client for which that exceeds 1 is always drawn, and the others share the
    rest.

    Args:
        seed: The round's seed.
        sizes: Client -> number of its examples.
        count: K.

    Returns:
        K ids, in a seeded order.
    """
    always = _always(sizes, count=count)
    rest = {client: size for client, size in sizes.items() if client not in always}
    left, total = count - len(always), sum(rest.values())
    drawn = list(always)
    if left:
        point, end = int(derive(seed, "point"), 16) % total, 0
        for client in uniformly(derive(seed, "line"), list(rest)):  # each covers K n_k of a line; points are n apart
            end += left * rest[client]
            if point < end:
                drawn.append(client)
                point += total
    return uniformly(seed, drawn)


def weights_by_size(sizes: Mapping[str, int], *, count: int) -> dict[str, int]:
    """Returns the weights with which the mean over a sample `by_size` estimates the mean over all clients.

    n_k divided by k's probability of being drawn (Horvitz and Thompson 1952), times a common factor: equal for clients
    that are drawn by chance, as in scheme II of Li et al. 2020 (arXiv 1907.02189); in proportion to n_k for those that
    are always drawn. They sum to the same whichever clients are drawn, so the mean is unbiased.

    Args:
        sizes: Client -> number of its examples, for all clients.
        count: Number of clients drawn.
    """
    always = _always(sizes, count=count)
    left = count - len(always)
    total = sum(size for client, size in sizes.items() if client not in always)
    return {client: max(left, 1) * size if client in always else total for client, size in sizes.items()}


def _always(sizes: Mapping[str, int], *, count: int) -> set[str]:
    """Returns the clients that are drawn with certainty: those whose share of the draws would be 1 or more."""
    always: set[str] = set()
    total = sum(sizes.values())
    for client in sorted(sizes, key=lambda name: (-sizes[name], name)):
        if len(always) == count or (count - len(always)) * sizes[client] < total:
            break
        always.add(client)
        total -= sizes[client]
    return always
