"""The savings of each lever: a stage's cost as planned, compared with the same stage without that lever."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from lwfed.catalog.costs import Architecture
from lwfed.cost.ledger import stage_costs
from lwfed.cost.schedule import samples_per_round
from lwfed.cost.stage_cost import StageCost
from lwfed.plan.stages import StagePlan


@dataclass(frozen=True, slots=True)
class Saving:
    """The savings of one lever in a stage.

    Attributes:
        stage: s.
        lever: Its key in the spec, such as `levers.prefix_cache`.
        how: What it does, in words.
        flops: FLOPs of the stage's training without it / with it, filling included; 1 if it saves none, below 1 if it
            costs some.
        peak_bytes: Bytes of peak memory that it saves; negative if it costs some.
        exchanged_bytes: Bytes that it saves per round, up and down together.
        disk_bytes: Bytes that it uses on the client's disk.
    """

    stage: int
    lever: str
    how: str
    flops: float
    peak_bytes: int
    exchanged_bytes: int
    disk_bytes: int


def savings(
    stages: Sequence[StagePlan],
    *,
    architectures: Mapping[str, Architecture],
    num_examples: int,
    num_classes: int | None = None,
    tokens: Mapping[str, int] | None = None,
) -> list[Saving]:
    """Prices every lever that the stages use.

    Args:
        stages: The stages, in order.
        architectures: Modality -> the whole encoder.
        num_examples: Number of a client's examples.
        num_classes: C, for a supervised objective.
        tokens: Modality -> number of tokens to count with.

    Returns:
        The savings in each stage that is trained, with levers in the spec's order.
    """

    def price(plans: Sequence[StagePlan]) -> list[StageCost]:
        return stage_costs(plans, architectures=architectures, num_classes=num_classes, tokens=tokens)

    own = price(stages)
    found: dict[tuple[int, int], Saving] = {}
    for order, (lever, active, without) in enumerate(LEVERS):
        used = [active(stage, architectures) if stage.rounds else "" for stage in stages]
        if not any(used):
            continue
        others = price([without(stage) if how else stage for stage, how in zip(stages, used, strict=True)])
        for stage, how, cost, other in zip(stages, used, own, others, strict=True):
            if how:
                flops = [_stage_flops(stage, item, num_examples=num_examples) for item in (other, cost)]
                found[stage.stage, order] = Saving(
                    stage=stage.stage,
                    lever=lever,
                    how=how,
                    flops=flops[0] / max(flops[1], 1),
                    peak_bytes=other.peak_bytes - cost.peak_bytes,
                    exchanged_bytes=round(_traffic(other) - _traffic(cost)),
                    disk_bytes=num_examples * (cost.cache_bytes - other.cache_bytes),
                )
    return [found[key] for key in sorted(found)]


def _traffic(cost: StageCost) -> float:
    return cost.upload_bytes + cost.download_bytes


def _stage_flops(stage: StagePlan, cost: StageCost, *, num_examples: int) -> int:
    samples = stage.rounds * samples_per_round(stage, num_examples=num_examples)
    return samples * cost.flops + num_examples * cost.fill_flops


Active = Callable[[StagePlan, Mapping[str, Architecture]], str]
"""Returns what a lever does in a stage, in words; empty if it is not used."""
Lever = tuple[str, Active, Callable[[StagePlan], StagePlan]]


def _lever(path: str, words: Callable[[Any], str], *, off: Any, key: str | None = None) -> Lever:
    """Describes a lever by its place in a stage's plan, and by the value there that switches it off."""
    section, _, name = path.partition(".")

    def active(stage: StagePlan, architectures: Mapping[str, Architecture]) -> str:
        value = getattr(getattr(stage, section), name)
        return "" if value == off else words(value)

    return key or path, active, partial(_without, section=section, name=name, off=off)


def _without(stage: StagePlan, *, section: str, name: str, off: Any) -> StagePlan:
    return stage.model_copy(update={section: getattr(stage, section).model_copy(update={name: off})})


def _cached(views: Mapping[str, int]) -> str:
    words = {"text": "captions"}
    return ", ".join(f"{m} {n} {words.get(m, 'views')}" if n > 1 else m for m, n in views.items())


def _last_block(stage: StagePlan, architectures: Mapping[str, Architecture]) -> str:
    """Returns how the last blocks are computed: what costs the same as `row`, or as all tokens, is computed so.

    MobileBERT's keys and values cannot be absorbed, for example, and its `absorbed` is its `row`.
    """
    words = {"row": "one token", "absorbed": "one token, K and V absorbed"}
    used: dict[str, list[str]] = {}
    for modality, how in stage.levers.last_block.items():
        depth = stage.depth[modality]
        block = architectures[modality].units[f"blocks.{depth - 1}"]
        if stage.cut.get(modality, 0) < depth and block.cost_as(how) != block.cost:
            same = block.cost_as(how) == block.cost_as("row")
            used.setdefault(words["row" if same else how], []).append(modality)
    if len(used) < 2:
        return "".join(used)
    return " and ".join(f"{how} ({', '.join(modalities)})" for how, modalities in sorted(used.items()))


LEVERS: tuple[Lever, ...] = (
    _lever("levers.views", _cached, off={}, key="levers.prefix_cache"),
    _lever("levers.prefix_dtype", lambda codec: f"these outputs as {codec}", off="fp32"),
    ("levers.last_block", _last_block, partial(_without, section="levers", name="last_block", off={})),
    _lever("training.step_in_backward", lambda _: "gradients freed at once", off=False),
    _lever("training.moments", lambda value: f"AdamW's moments as {value}", off="fp32"),
    _lever("training.activation_checkpointing", lambda _: "activations recomputed", off=False),
    _lever("exchange.upload", lambda codec: f"updates as {codec} changes", off="fp32"),
    _lever("exchange.download", lambda codec: f"models as {codec} changes", off="fp32"),
)
"""Key in the spec, what it does in a stage (empty if it is not used), and the stage without it."""
