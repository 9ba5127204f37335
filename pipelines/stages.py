"""What a pipeline trains: an experiment, which stages of it, and what they start from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lwfed.plan.strategies import stage_rounds
from lwfed.run import runs
from lwfed.run.parent import Parent
from lwfed.spec.run import RunSpec
from lwfed.store.protocol import Store
from lwfed.types.errors import CheckpointError, SpecError


@dataclass(frozen=True, slots=True)
class Work:
    """What is to be trained.

    Attributes:
        spec: The experiment.
        stages: The stages to train; None: from the parent's on, else all.
        parent: The run it starts from, and the first stage it trains; None for none.
        fresh: Train again, even where equal work is committed.
    """

    spec: RunSpec
    stages: Sequence[int] | None = None
    parent: Parent | None = None
    fresh: bool = False


def count_stages(spec: RunSpec) -> int:
    """Returns the number of stages of an experiment; one that trains end to end has one."""
    return len(stage_rounds(spec.strategy, spec.stages.rounds))


def parse_stages(text: str | None, *, count: int) -> Sequence[int] | None:
    """Reads `3-6`, `3-` or `3`.

    Args:
        text: What the user wrote.
        count: Number of stages of the experiment, where `3-` ends.

    Returns:
        The stages, in order; None where nothing was written.

    Raises:
        SpecError: It names no stages.
    """
    if text is None:
        return None
    begin, sign, end = text.replace(" ", "").partition("-")
    if not begin.isdecimal() or (end and not end.isdecimal()):
        raise SpecError(f"`--stages {text}` names no stages", remedy="write --stages 3-6, --stages 3- or --stages 3")
    return range(int(begin), (int(end) if end else count if sign else int(begin)) + 1)


def pick_stages(stages: Sequence[int] | None, *, count: int, parent: Parent | None) -> list[int]:
    """Picks the stages to train.

    Args:
        stages: Those that were asked for; None: from the parent's on, else all.
        count: Number of stages of the experiment.
        parent: The run it starts from, and the first stage to train; None for none.

    Returns:
        The stages, in order.

    Raises:
        SpecError: There are no such stages, they have gaps, or nothing is there to start from.
    """
    start = parent[1] if parent else 1
    wanted = range(start, count + 1) if stages is None else stages
    within = bool(wanted) and wanted[0] >= 1 and wanted[-1] <= count
    if not within or list(wanted) != list(range(wanted[0], wanted[-1] + 1)):
        named = f" {wanted[0]} to {wanted[-1]}" if wanted else ""
        raise SpecError(f"there are no stages{named} in a row", remedy=f"the experiment has stages 1 to {count}")
    if wanted[0] != start:
        left = "no stage before it is named to start from" if parent is None else f"the parent is left at stage {start}"
        raise SpecError(f"training begins at stage {wanted[0]}, and {left}", remedy=f"give --from RUN:{wanted[0]}")
    return list(wanted)


def check_parent(store: Store, parent: Parent) -> RunSpec:
    """Makes sure that what a stage starts from is committed.

    Args:
        store: Where the parent is.
        parent: A run, and the first stage that is to be trained again.

    Returns:
        The parent's spec.

    Raises:
        NotFoundError: There is no such run.
        SpecError: It has no such stage.
        CheckpointError: The stage before is not committed.
    """
    run_id, stage = parent
    run = runs.read_run(store, run_id)
    spec = runs.spec_of(run)
    if not 1 <= stage <= spec.stages.count:
        raise SpecError(f"there is no stage {stage} in {run_id}", remedy=f"name a stage from 1 to {spec.stages.count}")
    runs.note_committed(store, run, before=stage)
    try:
        runs.input_digest_of(store, run, stage)
    except CheckpointError as error:
        remedy = f"wait until it is, or train from an earlier stage: lwfed show {run_id} lists them"
        raise CheckpointError(error.problem, remedy=remedy) from None
    return spec
