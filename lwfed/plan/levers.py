"""The levers that a stage uses, decided from the spec alone, since results depend on them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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


UNDECIDED = LeversPlan(last_block={}, views={})
"""Stands in a stage's plan until all stages are known."""


def plan_levers(spec: RunSpec, stages: Sequence[StagePlan]) -> Iterator[LeversPlan]:
    """Decides the levers of an experiment's stages; yields those of each.

    A prefix's outputs are cached if `levers.prefix_cache` is always, or if it is auto and an example's prefix would be
    computed more often than it has views, over `local_epochs` x `fraction_fit` epochs of all rounds that freeze one: a
    stage computes only what it draws, and starts from what the stage before has kept. If the spec has steps instead of
    epochs, auto caches nothing.

    Args:
        spec: The experiment.
        stages: Its stages, complete but for the levers.
    """
    wanted = spec.levers.last_block
    best: Literal["full", "row", "absorbed"] = "absorbed" if wanted == "auto" else wanted
    last_block: dict[str, Literal["full", "row", "absorbed"]] = {
        modality: best if encoder_family(encoder.family).feature_token else "full"
        for modality, encoder in spec.model.encoders.items()
    }
    kept = {modality: count for modality in last_block if (count := _kept_views(spec, stages, modality))}
    rounded: dict[str, set[int]] = {}
    for stage in stages:
        views = {m: kept[m] for m, cut in stage.cut.items() if cut and stage.rounds and m in kept}
        dtype = spec.levers.prefix_dtype if views else "fp32"
        before = {m: tuple(sorted(cut for cut in rounded.get(m, ()) if cut < stage.cut[m])) for m in views}
        yield LeversPlan(
            last_block=last_block,
            views=views,
            prefix_dtype=dtype,
            rounded_at={m: cuts for m, cuts in before.items() if cuts and dtype != "fp32"},
        )
        for modality in views:
            rounded.setdefault(modality, set()).add(stage.cut[modality])


def _kept_views(spec: RunSpec, stages: Sequence[StagePlan], modality: str) -> int:
    """Returns the number of a modality's inputs per example whose frozen prefix's outputs are cached; 0: none are."""
    views, wants = views_of(spec, modality), spec.levers.prefix_cache
    if wants == "auto" and spec.training.local_steps is None:  # else the number of epochs depends on the data
        rounds = sum(stage.rounds for stage in stages if stage.cut[modality])
        return views if rounds * spec.training.local_epochs * spec.federation.fraction_fit > views else 0
    return views if wants == "always" else 0


def views_of(spec: RunSpec, modality: str) -> int:
    """Returns the number of inputs per example that can be cached; 0 if each epoch has its own."""
    if modality == "text":
        return data_source(spec.data.source).captions
    return spec.levers.views if modality in AUGMENTED and spec.data.augment else 1
