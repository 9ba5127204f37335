"""Which clients measure their first step: one of each kind in a stage, since the others would find the same.

FLOPs and bytes of a step follow from the plan, the kind of client and the batch. Measuring takes several times the step
itself, so one client measures for all: the one with the most examples, whose batch is the largest.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

from lwfed.plan.stages import StagePlan
from lwfed.types.round_records import ClientRecord

Pool = Callable[[str], str]
"""Client -> name of the machines that it runs on; different names may be different devices."""


def kind_on(plan: StagePlan, client: str, *, pool: Pool) -> str:
    """Returns what a client has in common with those that measure the same: what it trains, and on which machines."""
    return f"{plan.work_of(client).kind} on {pool(client)}"


def measuring_clients(
    plan: StagePlan, cohort: Sequence[str], *, sizes: Mapping[str, int], pool: Pool, done: Collection[str]
) -> set[str]:
    """Returns the clients of a cohort that measure their first step.

    Args:
        plan: The stage.
        cohort: The clients that a round asks.
        sizes: Client -> number of its examples.
        pool: The clients' machines.
        done: Kinds that an earlier round of the stage measured; see `kind_on`.
    """
    of_kind: dict[str, list[str]] = {}
    for client in cohort:
        of_kind.setdefault(kind_on(plan, client, pool=pool), []).append(client)
    return {
        min(clients, key=lambda client: (-sizes.get(client, 0), client))
        for kind, clients in of_kind.items()
        if kind not in done
    }


def measured_kinds(plan: StagePlan, clients: Mapping[str, ClientRecord], *, pool: Pool) -> set[str]:
    """Returns the kinds that a round's clients measured."""
    return {kind_on(plan, client, pool=pool) for client, one in clients.items() if one.step_flops is not None}
