"""Clients that are not alike: which units of a stage each group trains, and what an update may therefore lack.

A weak client trains the last blocks of those that the stage trains; the blocks before them run without gradients, and
change from round to round because other clients train them. Its heads are trained whatever the number of blocks. So
each tensor is averaged over the clients that train it (partial training, as in FedRA, arXiv 2311.11227, and in
heterogeneous federations since HeteroFL, arXiv 2010.01264, but by whole blocks).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from lwfed.plan.strategies import Selection, select
from lwfed.spec.base import Section
from lwfed.spec.groups import OTHERS, GroupSpec
from lwfed.spec.run import RunSpec
from lwfed.types.errors import SpecError

if TYPE_CHECKING:  # a plan names its groups by this module
    from lwfed.plan.stages import StagePlan

FEWEST = 2
"""Fewest examples that can train a modality: BatchNorm and negatives need two."""

Fitted = Mapping[str, Sequence[int | None]]
"""Group -> the most blocks that its devices can train in each stage; None: it skips the stage."""


class GroupPlan(Section):
    """What a group of clients trains in a stage.

    Attributes:
        name: Its name; `others` for the clients that the spec puts into none.
        clients: Ids.
        trained: Units that they train and send, in the model's order.
        cut: Modality -> number of leading blocks that run without gradients.
    """

    name: str
    clients: tuple[str, ...]
    trained: tuple[str, ...]
    cut: dict[str, int]

    @cached_property
    def members(self) -> frozenset[str]:
        """Its clients as a set, which finds one of thousands at once."""
        return frozenset(self.clients)


@dataclass(frozen=True, slots=True)
class Work:
    """What one client trains in a stage.

    Attributes:
        group: Its group's name; empty if the plan has no groups.
        trained: Units that it trains and sends, in the model's order.
        cut: Modality -> number of leading blocks that run without gradients.
        lacks: Modalities that its data lack: it neither loads nor trains their units.
    """

    group: str
    trained: tuple[str, ...]
    cut: Mapping[str, int]
    lacks: tuple[str, ...]

    @property
    def kind(self) -> str:
        """The kind of client in words: `weak`, `others without audio` ..."""
        lacking = f" without {' and '.join(self.lacks)}" if self.lacks else ""
        return (self.group or "clients") + lacking


def modality_of(unit: str) -> str:
    """Returns the modality of a unit; the unit's own name if it serves all: `fusion`, `prediction`, `temperature`."""
    return unit.partition(".")[0]


def trained_text(work: Work) -> str:
    """Describes what a client trains: `image: stem, blocks 0-2, norm, projection; text: block 2, projection`."""
    modalities = dict[str, list[str]]()
    blocks = dict[str, list[int]]()
    shared = list[str]()
    for unit in work.trained:
        modality, _, part = unit.partition(".")
        if not part:
            shared.append(unit)
        elif part.startswith("blocks."):
            found = blocks.setdefault(modality, [])
            if not found:
                modalities.setdefault(modality, []).append("")  # the place of all blocks
            found.append(int(part.removeprefix("blocks.")))
        else:
            modalities.setdefault(modality, []).append(part.partition(".")[0])
    texts = []
    for modality, parts in modalities.items():
        own = [part or _range(blocks[modality]) for part in parts]
        texts.append(f"{modality}: {', '.join(own)}")
    return "; ".join([*texts, *shared]) or "nothing"


def _range(numbers: Sequence[int]) -> str:
    """Describes blocks, which follow one another: `block 2` or `blocks 0-2`."""
    return f"block {numbers[0]}" if len(numbers) == 1 else f"blocks {numbers[0]}-{numbers[-1]}"


def untrained(lacks: Mapping[str, Mapping[str, int]], *, sizes: Mapping[str, int]) -> dict[str, tuple[str, ...]]:
    """Returns client -> modalities that fewer than `FEWEST` of its examples have.

    Args:
        lacks: Client -> modality -> number of its examples that lack it.
        sizes: Client -> number of its examples.
    """
    found = {
        client: tuple(sorted(m for m, count in its.items() if sizes[client] - count < FEWEST))
        for client, its in lacks.items()
    }
    return {client: modalities for client, modalities in sorted(found.items()) if modalities}


def count_kinds(plan: StagePlan) -> Counter[str]:
    """Returns the number of a stage's clients of each kind; see `StagePlan.kinds`."""
    return Counter(plan.work_of(client).kind for client in plan.cohort.clients)


def without_modalities(units: Collection[str], *, left_out: Collection[str]) -> tuple[str, ...]:
    """Returns the units that are of none of some modalities."""
    return tuple(unit for unit in units if modality_of(unit) not in left_out)


def limited(selection: Selection, *, depth: Mapping[str, int], blocks: int) -> Selection:
    """Returns a selection of which at most the last `blocks` blocks of each modality are trained.

    Args:
        selection: The units of a stage.
        depth: Modality -> number of blocks present.
        blocks: Most blocks per modality. A stem is trained only with all blocks that follow it.
    """
    cut = {modality: max(count, depth[modality] - blocks) for modality, count in selection.cut.items()}
    fixed = {f"{m}.blocks.{i}" for m, count in cut.items() for i in range(count)}
    fixed |= {f"{m}.stem" for m, count in cut.items() if count}
    return Selection(
        present=selection.present,
        trained=tuple(unit for unit in selection.trained if unit not in fixed),
        appended=selection.appended,
        cut=cut,
    )


def union(selections: Sequence[Selection]) -> Selection:
    """Returns the selection of everything that any of some selections of one stage trains."""
    first = selections[0]
    trained = {unit for one in selections for unit in one.trained}
    return Selection(
        present=first.present,
        trained=tuple(unit for unit in first.present if unit in trained),
        appended=first.appended,
        cut={modality: min(one.cut[modality] for one in selections) for modality in first.cut},
    )


def plan_groups(
    spec: RunSpec, stage: int, *, own: Selection, depths: Sequence[Mapping[str, int]], fitted: Fitted
) -> tuple[GroupPlan, ...]:
    """Plans what each group trains in a stage; empty if the spec has no groups.

    Args:
        spec: The experiment.
        stage: s, counted from 1.
        own: What the clients in no group train.
        depths: Modality -> number of blocks present, for each stage.
        fitted: What devices can train; see `lwfed.cost.groups`. Groups that are not in it are not limited.

    Returns:
        The groups that take part, in the spec's order, and then the clients that are in none.

    Raises:
        SpecError: A client is unknown, or no client takes part.
    """
    members = spec.federation.members()
    if not members:
        return ()
    plans = []
    for group in spec.federation.groups:
        selection = group_selection(spec, group, stage, own=own, depths=depths)
        if group.name in fitted:
            most = fitted[group.name][stage - 1]
            if most is None:
                continue
            selection = limited(selection, depth=depths[stage - 1], blocks=most)
        plans.append(_group_plan(group.name, members[group.name], selection))
    grouped = {client for clients in members.values() for client in clients}
    rest = tuple(client for client in spec.federation.eligible_ids if client not in grouped)
    if rest:
        plans.append(_group_plan(OTHERS, rest, own))
    if not plans:
        raise SpecError(
            f"no client takes part in stage {stage}: it does not fit the device_memory of any of `federation.groups`",
            remedy="raise device_memory, or set too_small: train_less",
        )
    return tuple(plans)


def group_selection(
    spec: RunSpec, group: GroupSpec, stage: int, *, own: Selection, depths: Sequence[Mapping[str, int]]
) -> Selection:
    """Returns what a group trains in a stage if its devices' memory suffices.

    Args:
        spec: The experiment.
        group: The group.
        stage: s, counted from 1.
        own: What the clients in no group train.
        depths: Modality -> number of blocks present, for each stage.
    """
    selection = own
    if group.strategy is not None:
        window = {"layerwise": 1, "window": spec.stages.window}.get(group.strategy, len(depths))
        selection = select(stage, window=window, model=spec.model, depths=depths)
    if group.max_blocks is None:
        return selection
    return limited(selection, depth=depths[stage - 1], blocks=group.max_blocks)


def _group_plan(name: str, clients: tuple[str, ...], selection: Selection) -> GroupPlan:
    return GroupPlan(name=name, clients=clients, trained=selection.trained, cut=selection.cut)
