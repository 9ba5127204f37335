"""What a client computes and keeps of its frozen blocks' outputs: those of the inputs that each stage draws.

An epoch draws one view of each image and one caption of each text. Views follow one another, so which ones a stage
draws is known; captions are drawn at random, so their numbers are means. The client takes part in every round.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from lwfed.catalog.costs import Architecture, Unit
from lwfed.catalog.encoder import encoder_family
from lwfed.plan.groups import modality_of
from lwfed.plan.stages import StagePlan
from lwfed.types.kept import row_bytes


@dataclass(frozen=True, slots=True)
class Fill:
    """A modality's outputs in a stage, per example.

    Attributes:
        kept: Number of outputs on the disk at the stage's end.
        computed: Number of leading units whose output was cached before, 0 for none -> number of outputs computed from
            there.
    """

    kept: float
    computed: Mapping[int, float] = field(default_factory=dict)


def fills(stages: Sequence[StagePlan]) -> list[dict[str, Fill]]:
    """Returns what each stage fills: modality -> its outputs."""
    found: list[dict[str, Fill]] = []
    before: dict[str, tuple[int, list[float]]] = {}  # number of units, and the share of each input that is cached
    for stage in stages:
        filled: dict[str, Fill] = {}
        for modality, views in stage.levers.views.items():
            units, drawn = stage.cut[modality] + 1, _drawn(stage, modality, views=views)
            done, had = before.get(modality, (0, [0.0] * views))
            had = had if len(had) == views else [0.0] * views
            computed = {0: sum(new * (1 - old) for new, old in zip(drawn, had, strict=True))}
            if done == units:
                drawn = [1 - (1 - new) * (1 - old) for new, old in zip(drawn, had, strict=True)]
            elif done:
                computed[done] = sum(new * old for new, old in zip(drawn, had, strict=True))
            filled[modality] = Fill(kept=sum(drawn), computed={n: count for n, count in computed.items() if count})
            before[modality] = (units, drawn)
        found.append(filled)
    return found


def _drawn(stage: StagePlan, modality: str, *, views: int) -> list[float]:
    """Returns for each of an example's inputs the probability that the stage draws it; 1 if its epochs are unknown."""
    if stage.training.local_steps is not None:
        return [1.0] * views
    each = stage.training.local_epochs
    epochs = range((stage.first_round - 1) * each, (stage.first_round - 1 + stage.rounds) * each)
    if modality == "text":
        return [1 - (1 - 1 / views) ** len(epochs)] * views
    drawn = {epoch % views for epoch in epochs[:views]}
    return [float(view in drawn) for view in range(views)]


def flops_from(
    frozen: Sequence[str], *, kept: Iterable[str], units: Mapping[str, Unit], tokens: Mapping[str, int]
) -> dict[str, dict[str, int]]:
    """Returns the FLOPs of one output: modality -> number of leading units that need not run -> FLOPs of the others.

    Args:
        frozen: Present units that no client trains, from input to output.
        kept: Modalities whose outputs are cached.
        units: Every unit of the model.
        tokens: Modality -> number of tokens of an output.
    """
    own = {m: [name for name in frozen if modality_of(name) == m] for m in kept}
    forward = {m: [units[name].cost.forward.at(tokens[m]) for name in names] for m, names in own.items()}
    return {m: {str(done): sum(flops[done:]) for done in range(len(flops))} for m, flops in sorted(forward.items())}


def kept_bytes(stage: StagePlan, modality: str, *, architecture: Architecture, tokens: int) -> int:
    """Returns the bytes of one output on the disk; of a text, with a number of tokens.

    Args:
        stage: The stage.
        modality: A modality.
        architecture: Its whole encoder.
        tokens: T.
    """
    encoder, depth = stage.model.encoders[modality], stage.cut[modality]
    widths = encoder_family(encoder.family).widths
    width = architecture.width if widths is None else widths(encoder)[depth]
    return architecture.items_after(depth, tokens=tokens) // width * row_bytes(width, stage.levers.prefix_dtype)
