"""The work of a pipeline: an experiment, its stages to train, and the parent run."""

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
    """The work to train.

    Attributes:
        spec: The experiment.
        stages: The stages to train; None: from the parent's stage on, or all without a parent.
        parent: The parent run and the first stage to train; None for none.
        fresh: Train again even if equal work is committed.
    """

    spec: RunSpec
    stages: Sequence[int] | None = None
    parent: Parent | None = None
    fresh: bool = False


def count_stages(spec: RunSpec) -> int:
    """Returns the number of stages of an experiment; end-to-end training has one."""
    return len(stage_rounds(spec.strategy, spec.stages.rounds))


def parse_stages(text: str | None, *, count: int) -> Sequence[int] | None:
    """Parses `3-6`, `3-` or `3`.

    Args:
        text: The option's value.
        count: Number of stages of the experiment, the end of `3-`.

    Returns:
        The stages, in order; None without a value.

    Raises:
        SpecError: The text is not a range of stages.
    """
    if text is None:
        return None
    begin, sign, end = text.replace(" ", "").partition("-")
    if not begin.isdecimal() or (end and not end.isdecimal()):
        raise SpecError(
            f"`--stages {text}` is not a range of stages", remedy="write --stages 3-6, --stages 3- or --stages 3"
        )
    return range(int(begin), (int(end) if end else count if sign else int(begin)) + 1)


def pick_stages(stages: Sequence[int] | None, *, count: int, parent: Parent | None) -> list[int]:
    """Returns the stages to train.

    Args:
        stages: The requested stages; None: from the parent's stage on, or all without a parent.
        count: Number of stages of the experiment.
        parent: The parent run and the first stage to train; None for none.

    Returns:
        The stages, in order.

    Raises:
        SpecError: The stages do not exist or have gaps, or there is no stage to start from.
    """
    start = parent[1] if parent else 1
    wanted = range(start, count + 1) if stages is None else stages
    within = bool(wanted) and wanted[0] >= 1 and wanted[-1] <= count
    if not within or list(wanted) != list(range(wanted[0], wanted[-1] + 1)):
        named = f" {wanted[0]} to {wanted[-1]}" if wanted else ""
        raise SpecError(
            f"the experiment has no consecutive stages{named}", remedy=f"the experiment has stages 1 to {count}"
        )
    if wanted[0] != start:
        left = "there is no parent run" if parent is None else f"the parent's first stage to train is {start}"
        raise SpecError(f"training starts at stage {wanted[0]}, but {left}", remedy=f"pass --from RUN:{wanted[0]}")
    return list(wanted)


def check_parent(store: Store, parent: Parent) -> RunSpec:
    """Checks that the input of a stage is committed.

    Args:
        store: The parent's store.
        parent: The parent run and the first stage to train.

    Returns:
        The parent's spec.

    Raises:
        NotFoundError: The run does not exist.
        SpecError: It has no such stage.
        CheckpointError: The stage before is not committed.
    """
    run_id, stage = parent
    run = runs.read_run(store, run_id)
    spec = runs.spec_of(run)
    if not 1 <= stage <= spec.stages.count:
        raise SpecError(f"{run_id} has no stage {stage}", remedy=f"name a stage from 1 to {spec.stages.count}")
    runs.note_committed(store, run, before=stage)
    try:
        runs.input_digest_of(store, run, stage)
    except CheckpointError as error:
        remedy = f"wait until it is, or train from an earlier stage; list them with lwfed show {run_id}"
        raise CheckpointError(error.problem, remedy=remedy) from None
    return spec
