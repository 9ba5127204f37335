"""The strategies: one pure function of (window, stage) that decides which units are present and which are trained.

LW-FedMML and Prog-FedMML: arXiv 2407.15426, Fig. 3 and 4, are the smallest and the largest window. Training itself does
not depend on a strategy's name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lwfed.plan.units import units_of
from lwfed.spec.model import ModelSpec
from lwfed.spec.run import RunSpec


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


def window_of(spec: RunSpec) -> int:
    """Returns the number of latest stages whose blocks are trained: 1 is layer-wise, all of them is progressive."""
    match spec.strategy:
        case "layerwise":
            return 1
        case "window":
            return min(spec.stages.window, spec.stages.count)
    return spec.stages.count


def title_of(spec: RunSpec) -> str:
    """Returns the name of a spec's strategy in reports: `window 2` for that strategy, else its name."""
    return f"window {spec.stages.window}" if spec.strategy == "window" else spec.strategy


def select(stage: int, *, window: int, model: ModelSpec, depths: Sequence[Mapping[str, int]]) -> Selection:
    """Selects the units that are present and those that are trained at a stage.

    Args:
        stage: s, counted from 1.
        window: Number of latest stages whose blocks are trained.
        model: The model.
        depths: Modality -> number of blocks present, for each stage of the schedule; end_to_end has one.

    Returns:
        The selection.
    """
    nothing = dict.fromkeys(model.modalities, 0)
    present = units_of(model, depths[stage - 1])
    earlier = set(units_of(model, depths[stage - 2])) if stage > 1 else set[str]()
    cut = dict(depths[stage - window - 1]) if stage > window else nothing
    fixed = {
        unit
        for unit in (units_of(model, cut) if stage > window else ())
        if unit.endswith(".stem") or ".blocks." in unit
    }
    return Selection(
        present=present,
        trained=tuple(unit for unit in present if unit not in fixed),
        appended=tuple(unit for unit in present if unit not in earlier),
        cut=cut,
    )
