"""Gates: one pure function of a stage's plan and its rounds' metrics decides when the stage ends, and as which round.

By improvement: early stopping with patience (Prechelt 1998, Early Stopping - But When?). By movement: a stage ends when
its parameters oscillate instead of advancing (Wu et al. 2025, arXiv 2404.13349). The decision follows from committed
metrics alone, so a resume, another launcher and a reuse come to the same.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lwfed.plan.stages import ImprovementGate, MovementGate, StagePlan

EFFECTIVE_MOVEMENT = "movement/effective"
"""Metric of a round: the effective movement over the gate's window; absent while the stage has fewer rounds."""
UPDATE_NORM = "movement/update_norm"
"""Metric of a round: the sum over the trained parameters of their changes' absolute values."""


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a stage stands after a round.

    Attributes:
        over: Whether that round is the stage's last.
        result: The round whose model would be the stage's result if it ended now; 0 if there was no round.
    """

    over: bool
    result: int


def progress(plan: StagePlan, metrics: Sequence[Mapping[str, float]]) -> Progress:
    """Returns where a stage stands.

    By improvement: a round improves if its metric is better than that of the last round that improved, by more than
    `min_delta`. The stage ends when a round is evaluated and the last improvement is at least `patience` rounds ago.

    By movement: the stage ends as soon as the effective movement is below the threshold, and the last round is its
    result.

    Args:
        plan: The stage.
        metrics: The metrics of its rounds so far, in order.
    """
    done, gate = len(metrics), plan.gate
    over = done >= plan.rounds
    if not isinstance(gate, ImprovementGate):
        return Progress(over=over or (done > 0 and is_still(plan, metrics[-1])), result=done)
    sign = -1 if gate.metric.endswith("/loss") else 1
    best, reached = 0, float("-inf")
    for server_round, values in enumerate(metrics, start=1):
        value = values.get(gate.metric)
        if value is not None and math.isfinite(value) and sign * value > reached + gate.min_delta:
            best, reached = server_round, sign * value
    waited = bool(metrics) and gate.metric in metrics[-1] and done - best >= gate.patience
    return Progress(over=over or waited, result=best if gate.restore == "best" and best else done)


def is_still(plan: StagePlan, metrics: Mapping[str, float]) -> bool:
    """Returns whether a round with these metrics ends its stage by movement."""
    return isinstance(plan.gate, MovementGate) and metrics.get(EFFECTIVE_MOVEMENT, math.inf) < plan.gate.threshold


def rounds_read(plan: StagePlan) -> int:
    """Returns the number of latest rounds whose weights the gate still reads after a round: those in its window."""
    return plan.gate.window if isinstance(plan.gate, MovementGate) else 0
