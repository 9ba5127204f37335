"""Who sends what in a round, and with which weight: each tensor is averaged over the clients that trained it.

A client's weight for a modality's units is the number of its examples that have the modality; for what serves all
modalities it is w_n, the number of all its examples. So the mean is FedAvg's (McMahan et al. 2017, Algorithm 1) over
the data that the tensor has seen. Pure functions of the plan and the accepted updates, without torch: the coordinator
refuses by them, and the server averages by them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Self

from lwfed.plan.groups import FEWEST, modality_of
from lwfed.plan.stages import StagePlan
from lwfed.run.held import Terms
from lwfed.types.errors import QuorumError
from lwfed.types.round_records import AcceptedUpdate

GAPS = (
    "set federation.unsent=keep to leave such units as they were, or federation.require or fraction_fit so that more "
    "rounds have clients that train them"
)
"""What helps if a round's clients do not train a unit."""


@dataclass(frozen=True, slots=True)
class Counted:
    """How much a client's update counts.

    Attributes:
        num_examples: w_n.
        examples: Modality -> number of examples that have it, for the modalities that some lack.
        weight: Its weight instead of w_n, if clients are sampled by size.
        factor: What all its weights are multiplied with.
    """

    num_examples: int
    examples: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))
    weight: int | None = None
    factor: int = 1

    @classmethod
    def of(cls, update: AcceptedUpdate) -> Self:
        """Returns what an accepted update counts."""
        factor = 1 if update.factor is None else update.factor
        return cls(update.num_examples, update.metrics.examples, update.weight, factor)

    def on(self, terms: Terms) -> Self:
        """Returns the same on a round's terms."""
        return replace(self, weight=terms.weight, factor=1 if terms.factor is None else terms.factor)

    @property
    def whole(self) -> int:
        """The weight of its tensors that serve all modalities."""
        return self.factor * (self.num_examples if self.weight is None else self.weight)

    def for_unit(self, unit: str) -> int:
        """Returns the weight of its tensors of a unit that it trains; 0 if too few of its examples reach the unit."""
        count = self.examples.get(modality_of(unit), self.num_examples)
        if count < FEWEST and count < self.num_examples:
            return 0
        return self.factor * (count if self.weight is None else self.weight)


@dataclass(frozen=True, slots=True)
class Weights:
    """The weights of a client's tensors.

    Attributes:
        weight: Its weight for what serves all modalities, divided by the greatest common factor of all weights.
        by_unit: Unit -> its weight, likewise divided, for the units that it sends.
    """

    weight: int
    by_unit: Mapping[str, int]


def weights_of(plan: StagePlan, counted: Mapping[str, Counted], *, reduced: bool = True) -> dict[str, Weights]:
    """Returns the weights of a round's updates, by client.

    Common factors do not change a mean, so the greatest one is divided out.

    Args:
        plan: The stage.
        counted: Client -> how much its update counts.
        reduced: Whether the greatest common factor is divided out.

    Raises:
        ValueError: A client has no examples.
    """
    empty = [client for client, count in counted.items() if count.num_examples < 1]
    if empty:
        raise ValueError(f"{empty[0]} reports no examples; leave it out of the round")
    whole = {client: count.whole for client, count in counted.items()}
    by_unit = {
        client: {unit: weight for unit in plan.work_of(client).trained if (weight := count.for_unit(unit))}
        for client, count in counted.items()
    }
    factor = 1
    if reduced:
        factor = math.gcd(*whole.values(), *(weight for units in by_unit.values() for weight in units.values()))
    return {
        client: Weights(
            weight=whole[client] // factor, by_unit={unit: weight // factor for unit, weight in units.items()}
        )
        for client, units in by_unit.items()
    }


def kept_units(plan: StagePlan, weights: Mapping[str, Weights]) -> tuple[str, ...]:
    """Returns the trained units that fewer clients sent than the plan demands: they stay as they were.

    Args:
        plan: The stage.
        weights: The weights of the round's updates.
    """
    return tuple(unit for unit in plan.trained if num_senders(unit, weights) < plan.cohort.quorum_of(unit))


def num_senders(unit: str, weights: Mapping[str, Weights]) -> int:
    """Returns the number of clients that sent a unit."""
    return sum(unit in one.by_unit for one in weights.values())


def _why(failed: Mapping[str, str], clients: Sequence[str]) -> str:
    """Returns why clients have no update, in brackets."""
    reasons = [f"{client}: {failed[client].partition(' -> ')[0]}" for client in clients if client in failed]
    return f" ({'; '.join(reasons)})" if reasons else ""


def refuse_gaps(
    plan: StagePlan, counted: Mapping[str, Counted], *, server_round: int, failed: Mapping[str, str], resume: str
) -> None:
    """Raises QuorumError if a round lacks a required client, or a unit that the plan does not let stay as it was.

    Args:
        plan: The stage.
        counted: Client -> how much its update counts.
        server_round: r, for the message.
        failed: Client -> why it has no update.
        resume: How the run is resumed, for the message.
    """
    where = f"round {server_round} of stage {plan.stage}"
    absent = [client for client in plan.cohort.require if client not in counted]
    if absent:
        raise QuorumError(
            f"{where} has no update of {', '.join(absent)}, which federation.require names{_why(failed, absent)}",
            remedy=f"fix what made it fail; then {resume}",
        )
    weights = weights_of(plan, counted)
    gaps = kept_units(plan, weights)
    if gaps and plan.cohort.unsent == "fail":
        unit = gaps[0]
        missing = [client for client in failed if unit in plan.work_of(client).trained]
        more = f" and {len(gaps) - 1} other unit(s)" if len(gaps) > 1 else ""
        raise QuorumError(
            f"{where} has {num_senders(unit, weights)} update(s) of {unit}{more} and needs "
            f"{plan.cohort.quorum_of(unit)}"
            + (_why(failed, missing) or ": the round's other clients do not train it or lack the modality"),
            remedy=f"fix what made them fail; then {resume}" if missing else GAPS,
        )
    if len(gaps) == len(plan.trained):
        raise QuorumError(
            f"{where} has no unit that enough clients sent",
            remedy="lower federation.unit_quorum or modality_quorum, or ask more clients",
        )
