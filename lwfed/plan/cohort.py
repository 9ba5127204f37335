"""Seeded sampling of a round's clients."""

from __future__ import annotations

from collections.abc import Sequence

from lwfed.spec.federation import FederationSpec
from lwfed.types.errors import QuorumError
from lwfed.types.seeds import derive


def client_ids(num_clients: int) -> tuple[str, ...]:
    """Returns the clients' ids: `client-000`, `client-001` ..."""
    width = max(3, len(str(num_clients - 1)))
    return tuple(f"client-{n:0{width}d}" for n in range(num_clients))


def eligible_clients(federation: FederationSpec) -> tuple[str, ...]:
    """Returns the ids of the clients that take part: the first int(`eligible_fraction` x N)."""
    return client_ids(federation.clients)[: federation.eligible]


def sample(
    seed: str, *, clients: Sequence[str], fraction_fit: float, min_fit_clients: int, min_available_clients: int = 1
) -> tuple[str, ...]:
    """Samples a cohort: the clients with the smallest hashes of (seed, id), whatever their order or the library.

    Args:
        seed: The round's seed.
        clients: Ids of the available clients.
        fraction_fit: Fraction of the clients to sample.
        min_fit_clients: Smallest number to sample.
        min_available_clients: Smallest number that must be available.

    Returns:
        `max(int(len(clients) * fraction_fit), min_fit_clients)` ids, sorted.

    Raises:
        QuorumError: Fewer clients are available than needed.
    """
    needed = max(min_fit_clients, min_available_clients)
    if len(clients) < needed:
        raise QuorumError(
            f"{len(clients)} clients are available and {needed} are needed",
            remedy="lower federation.min_fit_clients or min_available_clients, or give more clients data",
        )
    count = max(int(len(clients) * fraction_fit), min_fit_clients)
    return tuple(sorted(sorted(clients, key=lambda client: derive(seed, client))[:count]))
