"""Budgets: how far each strategy gets with a given number of bytes or FLOPs, or amount of memory, per client."""

from __future__ import annotations

import re
from dataclasses import dataclass

from lwfed.cost.fit import parse_size
from lwfed.formats import bytes_text, flops_text, trimmed
from lwfed.report.compare.records import Comparison, Group, Mean, Quantity, RunCurve, Spread, spread
from lwfed.types.errors import SpecError

WRITE = {"bytes": bytes_text, "flops": flops_text, "memory": bytes_text}
"""Quantity -> its format."""
TITLES = {"bytes": "bytes moved", "flops": "FLOPs computed", "memory": "memory"}
FLOPS = re.compile(r"\s*(\d+(?:\.\d*)?(?:[eE][-+]?\d+)?)\s*([kKmMgGtTpP]?)(?:flops?)?\s*", re.IGNORECASE)
SCALES = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "p": 10**15}


@dataclass(frozen=True, slots=True)
class Budget:
    """A client's budget: bytes moved over the run, FLOPs computed over the run, or memory at any time."""

    quantity: Quantity
    amount: float

    @property
    def text(self) -> str:
        """The amount with its unit."""
        return trimmed(WRITE[self.quantity](self.amount))


@dataclass(frozen=True, slots=True)
class Reach:
    """How far a group gets within a budget.

    Attributes:
        group: The group.
        budget: The budget.
        rounds: Rounds within the budget, for the seed with the fewest.
        total: Rounds of the whole schedule.
        best: Best metric within the budget, over seeds; None if no evaluated round fits.
        last: The last round within the budget, as a mean over seeds; None if no round fits.
        next_spent: The cost up to the first round beyond the budget; None if all rounds fit.
    """

    group: Group
    budget: Budget
    rounds: int
    total: int
    best: Spread | None
    last: Mean | None
    next_spent: float | None

    @property
    def verdict(self) -> str:
        """The result in words."""
        if self.next_spent is None:
            spent = WRITE[self.budget.quantity](self.group.last.spent(self.budget.quantity))
            return f"fits entirely: {spent}"
        needed = WRITE[self.budget.quantity](self.next_spent)
        if self.rounds == 0:
            return f"does not fit: its first round needs {needed}"
        return f"{self.rounds} of {self.total} rounds fit; round {self.rounds + 1} needs {needed}"


def parse_budget(text: str) -> Budget:
    """Parses `bytes=200MB`, `flops=3T` or `memory=1GiB`.

    Raises:
        SpecError: The text is not a budget.
    """
    quantity, sign, value = text.partition("=")
    if quantity == "flops" and sign:
        match = FLOPS.fullmatch(value)
        amount = float(match[1]) * SCALES[match[2].lower()] if match else 0.0
        if amount > 0:
            return Budget("flops", amount)
        raise SpecError(f"`{value}` is not a number of FLOPs", remedy="write for example flops=3T or flops=2.5e12")
    if quantity == "bytes" and sign:
        return Budget("bytes", parse_size(value))
    if quantity == "memory" and sign:
        return Budget("memory", parse_size(value))
    raise SpecError(f"`{text}` is not a budget", remedy="write bytes=200MB, flops=3T or memory=1GiB")


def reaches(comparison: Comparison, budget: Budget) -> tuple[Reach, ...]:
    """Returns how far each group gets within a budget.

    A round counts if all rounds up to it fit: a client that cannot fit a stage in memory takes part in no later one.
    """
    return tuple(_reach(group, budget, lower=comparison.lower_is_better) for group in comparison.groups)


def rounds_within(run: RunCurve, budget: Budget) -> int:
    """Returns the number of a run's rounds within a budget."""
    return sum(1 for point in run.points if point.spent(budget.quantity) <= budget.amount)  # costs only grow


def _reach(group: Group, budget: Budget, *, lower: bool) -> Reach:
    counts = [rounds_within(run, budget) for run in group.runs]
    total = len(group.means)
    rounds = min(*counts, total)
    pick = min if lower else max
    best = []
    for run in group.runs:
        known = [point.quality for point in run.points[:rounds] if point.quality is not None]
        if known:
            best.append(pick(known))
    beyond = group.means[rounds].at if rounds < total else None
    return Reach(
        group=group,
        budget=budget,
        rounds=rounds,
        total=total,
        best=spread(best) if len(best) == len(group.runs) else None,
        last=group.means[rounds - 1] if rounds else None,
        next_spent=None if beyond is None else beyond.spent(budget.quantity),
    )
