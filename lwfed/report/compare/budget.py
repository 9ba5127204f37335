"""What a budget buys: how far each strategy gets with so many bytes, so many FLOPs or so much memory per client."""

from __future__ import annotations

import re
from dataclasses import dataclass

from lwfed.cost.fit import parse_size
from lwfed.formats import bytes_text, flops_text, trimmed
from lwfed.report.compare.records import Comparison, Group, Mean, Quantity, RunCurve, Spread, spread
from lwfed.types.errors import SpecError

WRITE = {"bytes": bytes_text, "flops": flops_text, "memory": bytes_text}
"""What formats a quantity."""
TITLES = {"bytes": "bytes moved", "flops": "FLOPs computed", "memory": "memory"}
FLOPS = re.compile(r"\s*(\d+(?:\.\d*)?(?:[eE][-+]?\d+)?)\s*([kKmMgGtTpP]?)(?:flops?)?\s*", re.IGNORECASE)
SCALES = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "p": 10**15}


@dataclass(frozen=True, slots=True)
class Budget:
    """What a client may spend: bytes moved over the run, FLOPs computed over the run, or memory at any time."""

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
        rounds: Rounds within the budget, of the seed that affords fewest.
        total: Rounds of the whole schedule.
        best: Best metric among the rounds within, over seeds; None where no evaluated round fits.
        last: The last round within, as a mean over seeds; None where the first round is too much.
        next_spent: What the first round beyond would have spent; None where all fit.
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
        """The same in words."""
        if self.next_spent is None:
            spent = WRITE[self.budget.quantity](self.group.last.spent(self.budget.quantity))
            return f"fits whole: {spent}"
        needed = WRITE[self.budget.quantity](self.next_spent)
        if self.rounds == 0:
            return f"does not fit: its first round needs {needed}"
        return f"{self.rounds} of {self.total} rounds fit; round {self.rounds + 1} needs {needed}"


def parse_budget(text: str) -> Budget:
    """Reads `bytes=200MB`, `flops=3T` or `memory=1GiB`.

    Raises:
        SpecError: It is none of them.
    """
    quantity, sign, value = text.partition("=")
    if quantity == "flops" and sign:
        match = FLOPS.fullmatch(value)
        amount = float(match[1]) * SCALES[match[2].lower()] if match else 0.0
        if amount > 0:
            return Budget("flops", amount)
        raise SpecError(f"`{value}` is no number of FLOPs", remedy="write for example flops=3T or flops=2.5e12")
    if quantity == "bytes" and sign:
        return Budget("bytes", parse_size(value))
    if quantity == "memory" and sign:
        return Budget("memory", parse_size(value))
    raise SpecError(f"`{text}` is no budget", remedy="write bytes=200MB, flops=3T or memory=1GiB")


def reaches(comparison: Comparison, budget: Budget) -> tuple[Reach, ...]:
    """Returns for each group how far it gets within a budget.

    A round counts while all rounds up to it fit: a client that cannot hold a stage takes part in none after it.
    """
    return tuple(_reach(group, budget, lower=comparison.lower_is_better) for group in comparison.groups)


def rounds_within(run: RunCurve, budget: Budget) -> int:
    """Returns how many of a run's rounds a budget pays for."""
    return sum(1 for point in run.points if point.spent(budget.quantity) <= budget.amount)  # what is spent only grows


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
