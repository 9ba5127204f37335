"""Budgets: how far each strategy gets with a given number of bytes or FLOPs, or amount of memory, per client."""

from __future__ import annotations

import re
from dataclasses import dataclass

from lwfed.formats import PREFIXES, bytes_text, flops_text, trimmed
from lwfed.report.compare.records import Comparison, Group, Quantity, RunCurve, Spread, spread
from lwfed.types.errors import SpecError
from lwfed.types.sizes import parse_size

WRITE = {"bytes": bytes_text, "flops": flops_text, "memory": bytes_text}
"""Quantity -> its format."""
TITLES = {"bytes": "bytes moved", "flops": "FLOPs computed", "memory": "memory"}
FLOPS = re.compile(r"\s*(\d+(?:\.\d*)?(?:[eE][-+]?\d+)?)\s*([kKmMgGtTpP]?)(?:flops?)?\s*", re.IGNORECASE)
SCALES = {prefix.lower(): 1000**power for power, prefix in enumerate(PREFIXES)}


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
        best: Best metric within the budget, over seeds; None if no evaluated round fits.
    """

    group: Group
    budget: Budget
    rounds: int
    best: Spread | None

    @property
    def next_spent(self) -> float | None:
        """The cost up to the first round beyond the budget; None if all rounds fit."""
        beyond = self.group.means[self.rounds :]
        return beyond[0].spent(self.budget.quantity) if beyond else None

    @property
    def verdict(self) -> str:
        """The result in words."""
        quantity = self.budget.quantity
        if self.next_spent is None:
            return f"fits entirely: {WRITE[quantity](self.group.last.spent(quantity))}"
        needed = WRITE[quantity](self.next_spent)
        if self.rounds == 0:
            return f"does not fit: its first round needs {needed}"
        return f"{self.rounds} of {len(self.group.means)} rounds fit; round {self.rounds + 1} needs {needed}"


def parse_budget(text: str) -> Budget:
    """Parses `bytes=200MB`, `flops=3T` or `memory=1GiB`.

    Raises:
        SpecError: The text is not a budget.
    """
    quantity, sign, value = text.partition("=")
    if sign and quantity == "flops":
        match = FLOPS.fullmatch(value)
        amount = float(match[1]) * SCALES[match[2].lower()] if match else 0.0
        if amount > 0:
            return Budget("flops", amount)
        raise SpecError(f"`{value}` is not a number of FLOPs", remedy="write for example flops=3T or flops=2.5e12")
    if sign and quantity == "bytes":
        return Budget("bytes", parse_size(value))
    if sign and quantity == "memory":
        return Budget("memory", parse_size(value))
    raise SpecError(f"`{text}` is not a budget", remedy="write bytes=200MB, flops=3T or memory=1GiB")


def reaches(comparison: Comparison, budget: Budget) -> tuple[Reach, ...]:
    """Returns how far each group gets within a budget.

    A round counts if all rounds up to it fit: a client that cannot fit a stage in memory takes part in no later one.
    """
    found = []
    for group in comparison.groups:
        rounds = min(len(group.means), *(rounds_within(run, budget) for run in group.runs))
        best = [run.best(rounds, lower_is_better=comparison.lower_is_better) for run in group.runs]
        known = [value for value in best if value is not None]
        found.append(Reach(group, budget, rounds, best=spread(known) if len(known) == len(best) else None))
    return tuple(found)


def rounds_within(run: RunCurve, budget: Budget) -> int:
    """Returns the number of a run's rounds within a budget."""
    return sum(point.spent(budget.quantity) <= budget.amount for point in run.points)  # costs only grow
