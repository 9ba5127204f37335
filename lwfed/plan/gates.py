"""Gates: one pure function of a stage's plan and its rounds' metrics decides when the stage ends, and as which round.

Early stopping with patience (Prechelt 1998, Early Stopping - But When?). The decision follows from committed metrics
alone, so a resume, another launcher and a reuse come to the same.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lwfed.plan.stages import StagePlan


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

    A round improves if its metric is better than that of the last round that improved, by more than `min_delta`. The
    stage ends when a round is evaluated and the last improvement is at least `patience` rounds ago.

    Args:
        plan: The stage.
        metrics: The metrics of its rounds so far, in order.
    """
    done, gate = len(metrics), plan.gate
    over = done >= plan.rounds
    if gate is None:
        return Progress(over=over, result=done)
    sign = -1 if gate.metric.endswith("/loss") else 1
    best, reached = 0, float("-inf")
    for server_round, values in enumerate(metrics, start=1):
        value = values.get(gate.metric)
        if value is not None and math.isfinite(value) and sign * value > reached + gate.min_delta:
            best, reached = server_round, sign * value
    waited = bool(metrics) and gate.metric in metrics[-1] and done - best >= gate.patience
    return Progress(over=over or waited, result=best if gate.restore == "best" and best else done)
