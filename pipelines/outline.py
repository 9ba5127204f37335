"""Describes a pipeline's stages before they run: their titles, and the digests of their plans."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from lwfed import environment
from lwfed.cost.architectures import architectures_of
from lwfed.plan.stages import StagePlan, plan_stages
from lwfed.spec.run import RunSpec
from lwfed.steps.prepare import count_architecture
from lwfed.types.canonical import digest_of
from lwfed.types.errors import LwfedError
from pipelines.stages import count_stages

BLOCKS = ".blocks."


@dataclass(frozen=True, slots=True)
class Outline:
    """A stage of a pipeline.

    Attributes:
        stage: s, counted from 1.
        title: Its title, such as `stage 3: image 4-5, text 2`.
        plan_digest: Digest of its plan; empty if only the cluster knows it.
    """

    stage: int
    title: str
    plan_digest: str


def outlines_of(spec: RunSpec) -> list[Outline]:
    """Describes all stages of a spec.

    Plans with pretrained weights depend on the files' contents. Their digests are left empty, and the titles do not
    name blocks if the files are not on this machine.

    Raises:
        SpecError: Stage cuts do not fit the encoders.
    """
    has_weights = any(encoder.weights for encoder in spec.model.encoders.values())
    try:
        counted = architectures_of(spec.model, folder=environment.cache_folder(), count=count_architecture)
    except (LwfedError, OSError, ValueError):
        if not has_weights:
            raise
        count = count_stages(spec)
        return [Outline(stage, f"stage {stage} of {count}", "") for stage in range(1, count + 1)]
    plans = plan_stages(spec, depths={modality: item.depth for modality, item in counted.items()})
    return [
        Outline(plan.stage, title_of(plan), "" if has_weights else digest_of(plan.model_dump(mode="json")))
        for plan in plans
    ]


def title_of(plan: StagePlan) -> str:
    """Returns a stage's title, which names its appended blocks, counted from 0 as in the names of tensors."""
    blocks: dict[str, list[int]] = {}
    for unit in plan.appended:
        modality, sign, number = unit.partition(BLOCKS)
        if sign:
            blocks.setdefault(modality, []).append(int(number))
    appended = ", ".join(f"{modality} {_ranges(numbers)}" for modality, numbers in blocks.items())
    untrained = "" if plan.rounds else ", untrained"
    return f"stage {plan.stage}: {appended or 'no new blocks'}{untrained}"


def _ranges(numbers: Sequence[int]) -> str:
    """Returns 4, 5, 6, 9 as `4-6 9`."""
    runs = groupby(enumerate(sorted(numbers)), key=lambda item: item[1] - item[0])
    spans = [[number for _, number in run] for _, run in runs]
    return " ".join(f"{span[0]}" if len(span) == 1 else f"{span[0]}-{span[-1]}" for span in spans)
