"""The deadline of a round whose clients are heard while they train: the plan's FLOPs over the rates seen before.

`federation.round_timeout_s: auto` asks for it. A client's work in a round is priced by the ledger; its rate is the
slowest of its earlier rounds, before them the one that its pool states. A client without a rate makes a round without a
deadline, in which a client is given up when nothing is heard of its agent any longer. None of it affects a result.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lwfed.plan.stages import StagePlan
from lwfed.run import runs
from lwfed.spec.run import RunSpec
from lwfed.store import paths
from lwfed.store.protocol import Store
from lwfed.store.refs import read_object
from lwfed.types.records import RunRecord
from lwfed.types.round_records import ClientRecord, RoundRecord

SLACK = 3.0
"""A client may take so many times what its slowest earlier round of the stage lets expect."""
OTHER_SLACK = 10.0
"""Likewise by a rate of an earlier stage, or one that a pool states: other blocks train at other rates."""
LEAST_S = 60.0
"""Shortest deadline in seconds, for what takes no FLOPs: loading models and data, and sending."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """What is known of how long a client takes.

    Attributes:
        flops: FLOPs of its round.
        rate: FLOPs per second; None: unknown.
        slack: How many times longer it may take.
        turns: Clients that may train one after another where it trains, itself included.
    """

    flops: float
    rate: float | None
    slack: float = SLACK
    turns: int = 1


def deadline_of(paces: Iterable[Pace]) -> float:
    """Returns the seconds that a round may take: the largest of its clients', infinity if one's rate is unknown."""
    seconds = [math.inf if one.rate is None else one.turns * one.slack * one.flops / one.rate for one in paces]
    return max([LEAST_S, *seconds])


def work_flops(cost: Mapping[str, Any], *, kind: str, examples: int, epochs: int, first: bool = False) -> float:
    """Returns the FLOPs of a client's round.

    Args:
        cost: The stage's predicted costs, as a run's record has them.
        kind: The kind of client; see `StagePlan.kinds`.
        examples: Number of its examples.
        epochs: Its passes over them.
        first: Whether it is its first round of the stage, in which it computes the outputs of frozen blocks.
    """
    own = cost.get("kinds", {}).get(kind, cost)
    steps = epochs * (own["forward_flops"] + own["backward_flops"])
    return float(examples * (steps + (own.get("fill_flops", 0) if first else 0)))


def slowest_rates(rounds: Sequence[RoundRecord], plan: StagePlan, *, cost: Mapping[str, Any]) -> dict[str, float]:
    """Returns the FLOPs per second of each client's slowest round among rounds of one stage."""
    rates: dict[str, float] = {}
    for record in rounds:
        for client, metrics in record.clients.items():
            if metrics.wall_s > 0:
                rate = _trained(metrics, plan, client, cost=cost) / metrics.wall_s
                rates[client] = min(rate, rates.get(client, math.inf))
    return rates


class Deadlines:
    """The deadlines of a stage's rounds.

    Args:
        run: The run.
        spec: Its spec; a number in it is every round's deadline.
        plan: The stage's plan.
        store: Has the records of the run's earlier stages.
    """

    def __init__(self, run: RunRecord, spec: RunSpec, plan: StagePlan, *, store: Store) -> None:
        self._fixed_s = spec.federation.timeout_s
        self._plan, self._sizes = plan, run.data.clients
        self._cost = _cost_of(run, plan.stage)
        self._spec = spec
        self._before = {} if self._fixed_s is not None else _rates_before(run, plan.stage, store=store)

    def of(self, cohort: Sequence[str], records: Sequence[RoundRecord]) -> float:
        """Returns the seconds that the clients of a cohort have.

        Args:
            cohort: The clients.
            records: The stage's rounds so far.
        """
        if self._fixed_s is not None:
            return self._fixed_s
        if self._cost is None:
            return math.inf
        seen = slowest_rates(records, self._plan, cost=self._cost)
        return deadline_of(self._pace(client, cohort, seen, cost=self._cost) for client in cohort)

    def _pace(self, client: str, cohort: Sequence[str], seen: Mapping[str, float], *, cost: Mapping[str, Any]) -> Pace:
        flops = work_flops(
            cost,
            kind=self._plan.work_of(client).kind,
            examples=self._sizes.get(client, 0),
            epochs=self._plan.training.local_epochs,
            first=client not in seen,
        )
        turns = _turns(self._spec, client, cohort)
        if client in seen:
            return Pace(flops=flops, rate=seen[client], turns=turns)
        rate = self._before.get(client, _stated_rate(self._spec, client))
        return Pace(flops=flops, rate=rate, slack=OTHER_SLACK, turns=turns)


def _turns(spec: RunSpec, client: str, cohort: Sequence[str]) -> int:
    """Returns how many clients of a cohort may train one after another in a client's place."""
    if spec.launch.kind != "kubernetes":
        return 1
    pool = spec.kubernetes.pool_of(client)
    beside = sum(spec.kubernetes.pool_of(other).name == pool.name for other in cohort)
    return 1 if pool.remote or pool.parallel is None else math.ceil(beside / pool.parallel)


def _stated_rate(spec: RunSpec, client: str) -> float | None:
    """Returns the FLOPs per second that a client's pool states, None if there is no pool or number."""
    if spec.launch.kind != "kubernetes":
        return None
    stated = spec.kubernetes.pool_of(client).gflop_per_s
    return None if stated is None else 1e9 * stated


def _rates_before(run: RunRecord, stage: int, *, store: Store) -> dict[str, float]:
    """Returns each client's rate in the last stage before `stage` that this run trained and that it took part in."""
    rates: dict[str, float] = {}
    plans = runs.plans_of(run)
    for item in sorted(run.stages, key=lambda item: item.stage):
        cost = _cost_of(run, item.stage)
        made_by = (read_object(store, paths.stage_checkpoint(item.key)) or {}).get("made_by")
        if item.stage < stage and cost is not None and made_by == run.run_id:  # others may have trained elsewhere
            rates |= slowest_rates(runs.rounds_of(store, item.key), plans[item.stage - 1], cost=cost)
    return rates


def _cost_of(run: RunRecord, stage: int) -> Mapping[str, Any] | None:
    return next((cost for cost in run.predicted if cost["stage"] == stage), None)


def _trained(metrics: ClientRecord, plan: StagePlan, client: str, *, cost: Mapping[str, Any]) -> float:
    kind, epochs = plan.work_of(client).kind, plan.training.local_epochs
    return work_flops(cost, kind=kind, examples=metrics.num_examples, epochs=epochs)
