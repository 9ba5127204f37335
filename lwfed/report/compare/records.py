"""The records of a comparison: each run's curve over its rounds, groups of runs over seeds, and their means."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

Quantity = Literal["bytes", "flops", "memory"]
QUANTITIES: tuple[Quantity, ...] = get_args(Quantity)


@dataclass(frozen=True, slots=True)
class Spread:
    """A mean over seeds, and the sample standard deviation if there are two or more."""

    mean: float
    std: float | None = None


@dataclass(frozen=True, slots=True)
class Point:
    """A run after a round, or the mean of several seeds. Sums are for a client that took part in every round so far.

    Attributes:
        round: Global round.
        stage: Its stage.
        quality: The metric; None if the round, or a seed's round, was not evaluated.
        moved_bytes: Bytes of trained tensors sent and received.
        frozen_bytes: Bytes of frozen blocks received, each block once if the client caches it.
        flops: FLOPs computed in training.
        peak_bytes: Largest peak memory so far.
        wall_s: Wall time in seconds.
        validation: A run's same metric on validation data, by which its best round is chosen; None if there is none.
    """

    round: int
    stage: int
    quality: Spread | None
    moved_bytes: float
    frozen_bytes: float
    flops: float
    peak_bytes: float
    wall_s: float
    validation: float | None = None

    def spent(self, quantity: Quantity) -> float:
        """Returns the amount that counts against a budget: all bytes including frozen blocks, FLOPs, or peak memory."""
        if quantity == "bytes":
            return self.moved_bytes + self.frozen_bytes
        return self.flops if quantity == "flops" else self.peak_bytes


@dataclass(frozen=True, slots=True)
class Memory:
    """Peak memory of a stage in bytes: the ledger's prediction, and the largest measurement of any client."""

    stage: int
    predicted: float | None
    measured: float | None


@dataclass(frozen=True, slots=True)
class RunCurve:
    """A run's curve over its rounds.

    Attributes:
        run_id: The run.
        strategy: Its strategy.
        seed: Its seed.
        digest: Its last checkpoint's digest.
        complete: Whether all stages are finished.
        points: Its rounds.
        memory: Its trained stages.
    """

    run_id: str
    strategy: str
    seed: int
    digest: str
    complete: bool
    points: tuple[Point, ...]
    memory: tuple[Memory, ...]

    @property
    def final(self) -> Spread:
        """The metric after the last evaluated round."""
        return [point.quality for point in self.points if point.quality is not None][-1]

    def best(self, rounds: int, *, lower_is_better: bool) -> float | None:
        """Returns the metric after the best of the first rounds, or None if none of them was evaluated.

        The best round is chosen by validation data if all rounds have such a metric, else by the metric itself.
        """
        evaluated = [(p.quality.mean, p.validation) for p in self.points[:rounds] if p.quality is not None]
        if not evaluated:
            return None
        chosen_by = [validation for _, validation in evaluated if validation is not None]
        if len(chosen_by) < len(evaluated):
            chosen_by = [mean for mean, _ in evaluated]
        pick = min if lower_is_better else max
        return evaluated[chosen_by.index(pick(chosen_by))][0]


@dataclass(frozen=True, slots=True)
class Group:
    """Runs that differ only in their seed.

    Attributes:
        label: Its name in figures.
        strategy: Its strategy.
        runs: One run per seed.
        means: Their means, round by round.
    """

    label: str
    strategy: str
    runs: tuple[RunCurve, ...]
    means: tuple[Point, ...]

    @property
    def final(self) -> Spread:
        """The metric after the last evaluated round."""
        return spread([run.final.mean for run in self.runs])

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds, in order."""
        return tuple(run.seed for run in self.runs)

    @property
    def last(self) -> Point:
        """The last round, with the total costs."""
        return self.means[-1]


@dataclass(frozen=True, slots=True)
class Comparison:
    """Groups of runs, compared by one metric.

    Attributes:
        metric: The metric's name.
        groups: The groups; end_to_end, if present, is first.
        notes: Notes to readers, such as differing specs and unfinished runs.
    """

    metric: str
    groups: tuple[Group, ...]
    notes: tuple[str, ...] = ()

    @property
    def lower_is_better(self) -> bool:
        """Whether smaller values are better."""
        return self.metric.endswith("loss")

    @property
    def reference(self) -> Group | None:
        """The end-to-end group, the reference of ratios; None if there is none, or several."""
        found = [group for group in self.groups if group.strategy == "end_to_end"]
        return found[0] if len(found) == 1 else None


def spread(values: Sequence[float]) -> Spread:
    """Returns the mean, and the sample standard deviation of two or more values."""
    return Spread(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None)
