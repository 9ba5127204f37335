"""A run's records over its global rounds: its stages, and its metrics grouped by plot."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lwfed.formats import TASKS, finite, natural_order
from lwfed.plan.gates import EFFECTIVE_MOVEMENT
from lwfed.types.modalities import MODALITIES
from lwfed.types.records import RunRecord, StageRecord
from lwfed.types.round_records import RoundRecord

LOSS = 4
"""Rank of the panel of losses; panels of shares come before it."""


@dataclass(frozen=True, slots=True)
class Stage:
    """A stage's place among the global rounds; `last < first` if it has no rounds."""

    number: int
    first: int
    last: int

    @property
    def rounds(self) -> int:
        """Number of rounds."""
        return self.last - self.first + 1


@dataclass(frozen=True, slots=True)
class Series:
    """A metric over global rounds.

    Attributes:
        label: Its name in the panel.
        points: Global round and value; a value of None is a gap.
        held_out: Whether it is an average over the clients' held-out shares.
    """

    label: str
    points: tuple[tuple[int, float | None], ...]
    held_out: bool = False

    @property
    def last(self) -> float:
        """The last known value."""
        return [value for _, value in self.points if value is not None][-1]


@dataclass(frozen=True, slots=True)
class Panel:
    """Metrics that share a plot; `share`: whether they lie between 0 and 1."""

    key: str
    title: str
    series: tuple[Series, ...]
    share: bool


def stages_of(run: RunRecord, stages: Sequence[StageRecord], rounds: Sequence[RoundRecord]) -> list[Stage]:
    """Returns a run's recorded stages along its global rounds."""
    finished = {record.stage: record.rounds for record in stages}
    result, first = [], 1
    for number in run.stage_numbers:
        recorded = sum(1 for record in rounds if record.stage == number)
        if number not in finished and not recorded:
            break
        count = finished.get(number, recorded)
        result.append(Stage(number, first, first + count - 1))
        first += count
    return result


def panels_of(rounds: Sequence[RoundRecord]) -> list[Panel]:
    """Returns a run's metrics by panel: recall in each direction, classification, loss, and others.

    Of validation data there is the loss alone: their other metrics are for choices, and a report shows test results.
    """
    names = {name for record in rounds for name in record.metrics}
    names = {name for name in names if name.endswith("/loss") or not name.startswith("validation/")}
    sides = {"test": 0, "train": 1, "federated": 2}
    series: dict[tuple[int, str, str], list[Series]] = {}
    for name in sorted(natural_order(names), key=lambda name: sides.get(name.partition("/")[0], 1)):
        rank, key, title, label = _place(name)
        points = tuple(
            (record.global_round, value if finite(value) else None)
            for record in rounds
            if name in record.metrics
            for value in [record.metrics[name]]
        )
        if any(value is not None for _, value in points):
            series.setdefault((rank, key, title), []).append(Series(label, points, name.startswith("federated/")))
    return [Panel(key, title, tuple(found), rank < LOSS) for (rank, key, title), found in sorted(series.items())]


def _place(name: str) -> tuple[int, str, str, str]:
    """Returns the rank, the key and the title of a metric's panel, and the metric's label in it.

    Text to image is first, then other recalls, classification, other shares, loss, and the rest.
    """
    side, _, rest = name.partition("/")
    above, _, measure = rest.rpartition("/")
    alone = f" ({above} alone)" if above in MODALITIES else ""
    if side == "blend":
        return LOSS + 1, "blending", "Weights of the heads' losses, the mean over clients", above
    if name.endswith("/loss"):
        return LOSS, "loss", "Loss", {"train": "training", "federated": "test"}.get(side, side) + alone
    task, _, recall = rest.partition("/")
    if task in TASKS and recall.startswith("R@"):
        query, found = TASKS[task]
        return int(query != "text"), f"recall-{task}", f"{query.capitalize()} to {found} recall", recall
    if measure in ("accuracy", "precision", "recall", "f1") and (alone or not above):
        return 2, "classification", "Classification (macro averages)", measure.replace("f1", "F1") + alone
    if name == EFFECTIVE_MOVEMENT:
        return 3, "movement", "Effective movement of the trained parameters", "effective movement"
    if rest.startswith("zero_shot"):
        return 3, "zero-shot", "Zero-shot classification", rest.rpartition("/")[2]
    return LOSS + 1, "other-" + name.replace("/", "-"), name, name
