"""Quorums that cannot be met are refused before the first round: cohorts are seeded, so each of them is known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lwfed.plan.cohort import counts_of, sample_round
from lwfed.plan.stages import StagePlan
from lwfed.round.senders import GAPS, Counted, kept_units, num_senders, weights_of
from lwfed.run.events import Emit, Warning
from lwfed.types.errors import SpecError

MOST_UPDATES = 100_000
"""Schedules with more updates than this are not walked through: it would take longer than finding out."""


def refuse_uncovered(
    plans: Sequence[StagePlan], *, sizes: Mapping[str, int], lacks: Mapping[str, Mapping[str, int]], emit: Emit
) -> None:
    """Raises SpecError if a round will lack a unit even if no client fails, or warns if such units stay as they were.

    Args:
        plans: The stages.
        sizes: Client -> number of examples it trains on.
        lacks: Client -> modality -> number of these that lack it.
        emit: Receives `Warning`.
    """
    counted = {
        client: Counted(size, {modality: size - count for modality, count in lacks.get(client, {}).items()})
        for client, size in sizes.items()
    }
    kept = list[tuple[int, int, str]]()
    for plan in plans:
        need, ask = counts_of(plan.cohort)
        demands = plan.cohort.unit_quorum > 1 or plan.cohort.modality_quorum
        if not (plan.groups or plan.lacks or demands) or plan.rounds * ask > MOST_UPDATES:
            continue
        for server_round in range(1, plan.rounds + 1):
            cohort = sample_round(plan, server_round, sizes=sizes)[:need]
            weights = weights_of(plan, {client: counted[client] for client in cohort})
            gaps = kept_units(plan, weights)
            if gaps and plan.cohort.unsent == "fail":
                unit = gaps[0]
                raise SpecError(
                    f"round {server_round} of stage {plan.stage} will have {num_senders(unit, weights)} update(s) of "
                    f"{unit} and needs {plan.cohort.quorum_of(unit)}, even if no client fails",
                    remedy=f"{GAPS}; or lower federation.unit_quorum and modality_quorum",
                )
            if gaps:
                kept.append((plan.stage, server_round, gaps[0]))
    if kept:
        stage, server_round, unit = kept[0]
        emit(
            Warning(
                message=f"in {len(kept)} round(s) units will stay as they were, since too few clients of a cohort "
                f"train them; first {unit} in round {server_round} of stage {stage}"
            )
        )
