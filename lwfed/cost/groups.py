"""The costs of clients that are not alike, and how many blocks of a stage fit a device's memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from lwfed.catalog.costs import Architecture
from lwfed.cost.filling import fills
from lwfed.cost.ledger import newly_frozen, price
from lwfed.cost.stage_cost import StageCost
from lwfed.formats import bytes_text
from lwfed.plan.groups import Work, limited
from lwfed.plan.stages import StagePlan, plan_stages
from lwfed.plan.strategies import Selection
from lwfed.spec.groups import GroupSpec
from lwfed.spec.run import RunSpec
from lwfed.types.errors import SpecError
from lwfed.types.sizes import parse_size


def group_costs(
    stages: Sequence[StagePlan],
    *,
    architectures: Mapping[str, Architecture],
    num_classes: int | None = None,
    tokens: Mapping[str, int] | None = None,
    kept_tokens: Mapping[str, int] | None = None,
) -> list[dict[str, StageCost]]:
    """Prices every stage for each of its kinds of clients: a group's, and those that lack the same modalities.

    Args:
        stages: The stages, in order.
        architectures: Modality -> the whole encoder.
        num_classes: C, for a supervised objective.
        tokens: Modality -> number of tokens to count with.
        kept_tokens: The same of a cached output, which is not padded; default: `tokens`.

    Returns:
        For each stage, name (see `StagePlan.kinds`) -> the cost for one client; empty if all clients are alike.
    """
    return [
        {
            name: price(
                stage,
                new=new,
                architectures=architectures,
                filled=filled,
                work=work,
                num_classes=num_classes,
                tokens=tokens,
                kept_tokens=kept_tokens,
            )
            for name, work in stage.kinds().items()
        }
        for stage, new, filled in zip(stages, newly_frozen(stages), fills(stages), strict=True)
    ]


def fitted_blocks(
    spec: RunSpec,
    *,
    depths: Mapping[str, int],
    architectures: Mapping[str, Architecture],
    num_classes: int | None = None,
    tokens: Mapping[str, int] | None = None,
) -> dict[str, tuple[int | None, ...]]:
    """Returns how many blocks per modality each group can train whose devices' memory the spec names.

    The ledger's peak memory decides: weights, gradients, AdamW's moments and activations of a whole batch. What a
    group may not train is frozen only if no other client trains it, so memory is counted as if it were not, which may
    be more than is needed in the end.

    Args:
        spec: The experiment.
        depths: Modality -> number of blocks of its whole encoder.
        architectures: Modality -> the whole encoder.
        num_classes: C, for a supervised objective.
        tokens: Modality -> number of tokens to count with.

    Returns:
        Group -> for each stage the most blocks per modality, or None if the group leaves the stage out.

    Raises:
        SpecError: Not even the heads fit, and the group does not leave such stages out.
    """
    groups = [group for group in spec.federation.groups if group.device_memory is not None]
    if not groups:
        return {}
    stages = plan_stages(spec, depths=depths)

    def peak(stage: StagePlan, selection: Selection) -> int:
        work = Work(group="", trained=selection.trained, cut=selection.cut, lacks=())
        return price(
            stage, new=set(), architectures=architectures, work=work, num_classes=num_classes, tokens=tokens
        ).peak_bytes

    return {group.name: tuple(_most_blocks(group, stage, peak=peak) for stage in stages) for group in groups}


def _most_blocks(group: GroupSpec, stage: StagePlan, *, peak: Callable[[StagePlan, Selection], int]) -> int | None:
    depth = max(stage.depth.values())
    plan = next((one for one in stage.groups if one.name == group.name), None)
    if plan is None:  # the stage is not trained
        return depth
    memory = parse_size(group.device_memory or "")
    whole = Selection(present=stage.present, trained=plan.trained, appended=stage.appended, cut=plan.cut)
    needed = 0
    for blocks in range(depth, -1, -1):
        needed = peak(stage, limited(whole, depth=stage.depth, blocks=blocks))
        if needed <= memory:
            return blocks
        if group.too_small == "leave_out":
            return None
    raise SpecError(
        f"the devices of the group {group.name} have {group.device_memory}, and stage {stage.stage} needs "
        f"{bytes_text(needed)} for its heads alone",
        remedy="lower training.batch_size, take smaller heads or cheaper moments (training.moments), or set "
        "too_small: leave_out",
    )
