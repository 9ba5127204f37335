"""The schedule's total costs: all stages over their rounds, and as many rounds of end-to-end training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from lwfed.cost.exchange import download_bytes
from lwfed.cost.stage_cost import StageCost
from lwfed.plan.stages import StagePlan


@dataclass(frozen=True, slots=True)
class ScheduleCost:
    """The costs of a whole schedule for a client that takes part in every round.

    Attributes:
        rounds: Number of rounds.
        exchanged_params: Parameters sent in one direction.
        bytes_up: Bytes sent.
        bytes_down: Bytes received, without frozen units.
        bytes_down_frozen: Bytes of frozen units received, each once.
        flops: FLOPs of training and of filling the cache of frozen blocks' outputs.
        peak_bytes: Largest of the stages' peaks.
    """

    rounds: int
    exchanged_params: int
    bytes_up: int
    bytes_down: int
    bytes_down_frozen: int
    flops: int
    peak_bytes: int

    def to_values(self) -> dict[str, Any]:
        """Returns a JSON value."""
        return asdict(self)


def schedule_costs(
    stages: Sequence[StagePlan], *, costs: Sequence[StageCost], end_to_end: StageCost, num_examples: int
) -> tuple[ScheduleCost, ScheduleCost]:
    """Sums the stages' costs.

    Args:
        stages: The stages.
        costs: Their costs, in the same order.
        end_to_end: The cost of end-to-end training.
        num_examples: Number of a client's examples.

    Returns:
        The schedule's cost, and the cost of as many rounds of end-to-end training.
    """
    samples = [stage.rounds * samples_per_round(stage, num_examples=num_examples) for stage in stages]
    trained = [(stage, cost) for stage, cost in zip(stages, costs, strict=True) if stage.rounds]
    own = ScheduleCost(
        rounds=sum(stage.rounds for stage in stages),
        exchanged_params=sum(stage.rounds * cost.exchanged_params for stage, cost in trained),
        bytes_up=sum(stage.rounds * cost.exchanged_bytes for stage, cost in trained),
        bytes_down=sum(
            download_bytes(stage.rounds, snapshot=cost.snapshot_bytes, change=cost.change_bytes)
            for stage, cost in trained
        ),
        bytes_down_frozen=sum(cost.newly_frozen_bytes for _, cost in trained),
        flops=sum(count * cost.flops for count, cost in zip(samples, costs, strict=True))
        + sum(num_examples * cost.fill_flops for _, cost in trained),
        peak_bytes=max((cost.peak_bytes for _, cost in trained), default=0),
    )
    whole = ScheduleCost(
        rounds=own.rounds,
        exchanged_params=own.rounds * end_to_end.exchanged_params,
        bytes_up=own.rounds * end_to_end.exchanged_bytes,
        bytes_down=own.rounds * end_to_end.snapshot_bytes,
        bytes_down_frozen=0,
        flops=sum(samples) * end_to_end.flops,
        peak_bytes=end_to_end.peak_bytes,
    )
    return own, whole


def samples_per_round(stage: StagePlan, *, num_examples: int) -> int:
    """Returns the training samples per client per round; a last batch of one is dropped (BatchNorm needs two)."""
    training = stage.training
    batch = min(training.batch_size, num_examples)
    if training.local_steps is not None:
        return training.local_steps * batch
    return training.local_epochs * (num_examples - (1 if num_examples % max(batch, 1) == 1 else 0))


def factor(reference: float, value: float) -> float:
    """Returns `reference` / `value`; infinite for a value of 0."""
    return reference / value if value else float("inf")
