"""The cohort: who takes part in a stage, seeded sampling of a round's clients, and their weights in its mean."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from lwfed.plan.groups import GroupPlan, modality_of
from lwfed.spec.base import LATER, Section
from lwfed.spec.data import PartitionSpec
from lwfed.spec.federation import FederationSpec
from lwfed.types.clients import client_ids
from lwfed.types.errors import QuorumError, SpecError
from lwfed.types.seeds import derive

if TYPE_CHECKING:  # a plan names its clients by this module
    from lwfed.plan.stages import StagePlan


class CohortPlan(Section):
    """The clients that take part in a stage.

    Attributes:
        num_clients: N, the number of clients that share the data.
        eligible: Number of clients that take part, the first of all; None: all.
        sampling: How a round's clients are drawn; None: uniformly.
        oversample: Clients asked per update needed; None: 1.
        absent: Clients that leave this stage out, because it does not fit their devices.
        require: Clients that each round asks and cannot do without.
        unit_quorum: Fewest clients that must send a unit.
        modality_quorum: Modality -> fewest clients that must send its units instead.
        unsent: What becomes of a unit that fewer sent.
    """

    num_clients: int
    eligible: Annotated[int | None, LATER] = None
    partition: PartitionSpec
    fraction_fit: float
    min_fit_clients: int
    min_available_clients: int
    sampling: Annotated[Literal["by_size", "round_robin"] | None, LATER] = None
    oversample: Annotated[float | None, LATER] = None
    absent: Annotated[tuple[str, ...], LATER] = ()
    require: Annotated[tuple[str, ...], LATER] = ()
    unit_quorum: Annotated[int, LATER] = 1
    modality_quorum: Annotated[dict[str, int], LATER] = Field(default_factory=dict)
    unsent: Annotated[Literal["fail", "keep"], LATER] = "fail"

    @property
    def settled(self) -> bool:
        """Whether a round's updates and their weights are known in advance, if no client fails."""
        return self.sampling != "by_size" and self.oversample is None

    @property
    def clients(self) -> tuple[str, ...]:
        """Ids of the clients that take part."""
        absent = set(self.absent)
        return tuple(client for client in self.eligible_ids if client not in absent)

    @property
    def eligible_ids(self) -> tuple[str, ...]:
        """Ids of the clients that take part in the run, if not in this stage."""
        return client_ids(self.num_clients)[: self.eligible]

    def quorum_of(self, unit: str) -> int:
        """Returns the fewest clients that must send a unit."""
        return self.modality_quorum.get(modality_of(unit), self.unit_quorum)


def plan_cohort(federation: FederationSpec, stage: int, *, groups: Sequence[GroupPlan]) -> CohortPlan:
    """Plans who takes part in a stage. Raises SpecError if too few of its clients have devices that it fits."""
    present = {client for group in groups for client in group.clients}
    absent = tuple(client for client in federation.eligible_ids if groups and client not in present)
    cohort = CohortPlan(
        num_clients=federation.clients,
        eligible=None if federation.eligible == federation.clients else federation.eligible,
        partition=federation.partition,
        fraction_fit=federation.fraction_fit,
        min_fit_clients=federation.quorum,
        min_available_clients=min(federation.min_available_clients, federation.eligible),
        sampling=None if federation.sampling == "uniform" else federation.sampling,
        oversample=None if federation.oversample == 1 else federation.oversample,
        absent=absent,
        require=federation.required,
        unit_quorum=federation.unit_quorum,
        modality_quorum=federation.modality_quorum,
        unsent=federation.unsent,
    )
    fewest = max(cohort.min_fit_clients, cohort.min_available_clients)
    if absent and len(cohort.clients) < fewest:
        raise SpecError(
            f"only {len(cohort.clients)} client(s) have devices with room for stage {stage}, and {fewest} are needed",
            remedy="raise device_memory in federation.groups, set too_small: train_less, or lower "
            "federation.min_fit_clients and min_available_clients",
        )
    if missing := sorted(set(cohort.require) & set(absent)):
        raise SpecError(
            f"`federation.require` names {missing[0]}, whose device is too small for stage {stage}",
            remedy="set too_small: train_less for its group, or do not require it",
        )
    return cohort


def counts_of(cohort: CohortPlan) -> tuple[int, int]:
    """Returns how many updates a round needs and how many clients it asks (Bonawitz et al. 2019, arXiv 1902.01046).

    Returns:
        `max(int(N x fraction_fit), min_fit_clients)` of the N that take part, at least those that are required; and
        `oversample` times as many, rounded up; at most N.
    """
    available = len(cohort.clients)
    need = max(int(available * cohort.fraction_fit), cohort.min_fit_clients, len(cohort.require))
    more = Fraction(str(cohort.oversample or 1))
    return need, min(math.ceil(need * more), available)


def sample_round(plan: StagePlan, server_round: int, *, sizes: Mapping[str, int]) -> tuple[str, ...]:
    """Samples the clients that a round asks: those that are required, and others.

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
    seed, required = plan.round_seed(server_round, "cohort"), set(cohort.require)
    clients = tuple(client for client in clients if client not in required)
    need, ask = need - len(required), ask - len(required)
    match cohort.sampling:
        case "round_robin":
            drawn = in_turn(
                derive(plan.seed, "round_robin"), clients, start=(plan.first_round + server_round - 2) * need
            )
        case "by_size":
            drawn = by_size(seed, sizes={client: sizes.get(client, 1) for client in clients}, count=ask)
        case _:
            drawn = uniformly(seed, clients)
    return (*sorted([*required, *drawn[:need]]), *sorted(drawn[need:ask]))


def uniformly(seed: str, clients: Sequence[str]) -> list[str]:
    """Returns clients in a seeded order: by the hashes of (seed, id), whatever their order or the library."""
    return sorted(clients, key=lambda client: derive(seed, client))


def in_turn(seed: str, clients: Sequence[str], *, start: int) -> list[str]:
    """Returns clients in the same seeded order in every round, from a place on; the first follows the last."""
    order = uniformly(seed, clients)
    start %= max(len(order), 1)
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
