"""The strategies: one pure function of (strategy, stage) that decides which units are present and which are trained.

LW-FedMML and Prog-FedMML: arXiv 2407.15426, Fig. 3 and 4. Training itself does not depend on a strategy's name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lwfed.plan.units import units_of
from lwfed.spec.model import ModelSpec


@dataclass(frozen=True, slots=True)
class Selection:
    """The units of one stage.

    Attributes:
        present: Units of the model at this stage.
        trained: Units that are trained and exchanged.
        appended: Units that this stage adds to those of the previous stage.
        cut: Modality -> number of frozen leading blocks; 0 if the stem is trained. The outputs of that prefix may be
            cached.
    """

    present: tuple[str, ...]
    trained: tuple[str, ...]
    appended: tuple[str, ...]
    cut: dict[str, int]


def stage_rounds(strategy: str, rounds: Sequence[int]) -> tuple[int, ...]:
    """Returns the number of rounds of each stage; end_to_end has one stage with all rounds."""
    return (sum(rounds),) if strategy == "end_to_end" else tuple(rounds)


def select(strategy: str, stage: int, *, model: ModelSpec, depths: Sequence[Mapping[str, int]]) -> Selection:
    """Selects the units that are present and those that are trained at a stage.

    Args:
        strategy: `layerwise`, `progressive` or `end_to_end`.
        stage: s, counted from 1.
        model: The model.
        depths: Modality -> number of blocks present, for each stage of the schedule.

    Returns:
        The selection.
    """
    if strategy == "end_to_end":
        whole = units_of(model, depths[-1])
        return Selection(present=whole, trained=whole, appended=whole, cut=dict.fromkeys(model.modalities, 0))
    before = depths[stage - 2] if stage > 1 else dict.fromkeys(model.modalities, 0)
    present = units_of(model, depths[stage - 1])
    earlier = set(units_of(model, before)) if stage > 1 else set[str]()
    appended = tuple(unit for unit in present if unit not in earlier)
    if strategy == "progressive" or stage == 1:
        return Selection(present=present, trained=present, appended=appended, cut=dict.fromkeys(model.modalities, 0))
    frozen = {unit for unit in earlier if unit.endswith(".stem") or ".blocks." in unit}
    trained = tuple(unit for unit in present if unit not in frozen)
    return Selection(present=present, trained=trained, appended=appended, cut=dict(before))
