"""The levers that a stage uses, decided from the spec alone, since results depend on them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from lwfed.catalog.encoder import encoder_family
from lwfed.catalog.source import data_source
from lwfed.spec.base import LATER, Section
from lwfed.spec.run import RunSpec
from lwfed.types.encoded import Codec

if TYPE_CHECKING:  # a plan names its levers by this module
    from lwfed.plan.stages import StagePlan

AUGMENTED = frozenset({"image"})
"""Modalities whose inputs change from epoch to epoch if data are augmented."""


class LeversPlan(Section):
    """The levers of a stage.

    Attributes:
        last_block: Modality -> how its last present block is computed.
        views: Modality -> number of inputs per example whose frozen prefix's outputs are cached: views of an image,
            captions of a text. Modalities whose prefix is not cached are left out.
        prefix_dtype: Format of these outputs.
        rounded_at: Modality -> numbers of blocks after which earlier stages rounded outputs to that format; then it is
            done whatever they are computed from, so that they are the same.
    """

    last_block: dict[str, Literal["full", "row", "absorbed"]]
    views: dict[str, int]
    prefix_dtype: Annotated[Codec, LATER] = "fp32"
    rounded_at: Annotated[dict[str, tuple[int, ...]], LATER] = Field(default_factory=dict)


def plan_levers(spec: RunSpec, *, cut: Mapping[str, int], rounds: int) -> LeversPlan:
    """Decides a stage's levers.

    A prefix's outputs are cached if `levers.prefix_cache` is always, or if it is auto and an example's prefix would be
    computed more often than it has views, over `rounds` x `local_epochs` x `fraction_fit` epochs. If the spec has steps
    instead of epochs, auto caches nothing.

    Args:
        spec: The experiment.
        cut: Modality -> number of frozen leading blocks; 0 if nothing is frozen.
        rounds: Number of rounds of the stage.
    """
    wanted = spec.levers.last_block
    best: Literal["full", "row", "absorbed"] = "absorbed" if wanted == "auto" else wanted
    views = {modality: views_of(spec, modality) for modality, count in cut.items() if count}
    steps_alone = spec.training.local_steps is not None  # the number of epochs depends on the data
    epochs = 0 if steps_alone else rounds * spec.training.local_epochs * spec.federation.fraction_fit
    wants = spec.levers.prefix_cache
    kept = {
        modality: count
        for modality, count in views.items()
        if count and rounds and wants != "never" and (wants == "always" or epochs > count)
    }
    return LeversPlan(
        last_block={
            modality: best if encoder_family(encoder.family).feature_token else "full"
            for modality, encoder in spec.model.encoders.items()
        },
        views=kept,
        prefix_dtype=spec.levers.prefix_dtype if kept else "fp32",
    )


def with_roundings(stages: Sequence[StagePlan]) -> Iterator[tuple[StagePlan, LeversPlan]]:
    """Yields stages with their levers, completed by `rounded_at`: where earlier stages cut what they cached."""
    cuts: dict[str, set[int]] = {}
    for stage in stages:
        levers = stage.levers
        if levers.prefix_dtype != "fp32":
            found = {m: tuple(sorted(c for c in cuts.get(m, ()) if c < stage.cut[m])) for m in levers.views}
            levers = levers.model_copy(update={"rounded_at": {m: before for m, before in found.items() if before}})
        for modality in levers.views:
            cuts.setdefault(modality, set()).add(stage.cut[modality])
        yield stage, levers


def views_of(spec: RunSpec, modality: str) -> int:
    """Returns the number of inputs per example that can be cached; 0 if each epoch has its own."""
    if modality == "text":
        return data_source(spec.data.source).captions
    return spec.levers.views if modality in AUGMENTED and spec.data.augment else 1
