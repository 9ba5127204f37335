"""Which stages a submission trains, and what it starts from."""

from __future__ import annotations

from lwfed.run import runs
from lwfed.spec.run import RunSpec
from lwfed.store.protocol import Store
from lwfed.types.errors import CheckpointError, SpecError


def parse_stages(text: str | None, *, count: int, first: int | None = None) -> list[int] | None:
    """Reads `3-6`, `3-` or `3`.

    Args:
        text: What the user wrote; None: from `first` to the last.
        count: Number of stages of the experiment.
        first: The first stage of a run that has a parent.

    Returns:
        The stages, in order; None for all of them.

    Raises:
        SpecError: It names no stages of the experiment, or starts elsewhere than the parent ends.
    """
    if text is None:
        return None if first in (None, 1) else _range(first, count, count=count)
    begin, sign, end = text.replace(" ", "").partition("-")
    if not begin.isdigit() or (end and not end.isdigit()):
        raise SpecError(f"`--stages {text}` names no stages", remedy="write --stages 3-6, --stages 3- or --stages 3")
    last = int(end) if end else (count if sign else int(begin))
    stages = _range(int(begin), last, count=count)
    if first is not None and stages[0] != first:
        raise SpecError(
            f"--stages {text} begins at stage {stages[0]} and --from at stage {first}", remedy="let both name the same"
        )
    if first is None and stages[0] > 1:
        raise SpecError(
            f"stage {stages[0]} has no stage {stages[0] - 1} to start from", remedy=f"give --from RUN:{stages[0]}"
        )
    return stages


def parse_parent(text: str | None) -> tuple[str, int] | None:
    """Reads `RUN:STAGE`. Raises SpecError."""
    if text is None:
        return None
    run_id, sign, stage = text.rpartition(":")
    if not sign or not run_id or not stage.isdigit() or int(stage) < 1:
        raise SpecError(f"`--from {text}` names no stage of a run", remedy="write --from RUN:3")
    return run_id, int(stage)


def check_parent(store: Store, parent: tuple[str, int]) -> RunSpec:
    """Makes sure that what a stage starts from is committed.

    Args:
        store: Where the parent is.
        parent: A run, and the first stage that is to be trained anew.

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
        raise CheckpointError(
            error.problem, remedy=f"wait until it is, or train from an earlier stage: lwfed show {run_id} lists them"
        ) from None
    return spec


def _range(first: int, last: int, *, count: int) -> list[int]:
    if not 1 <= first <= last <= count:
        raise SpecError(f"there are no stages {first} to {last}", remedy=f"the experiment has stages 1 to {count}")
    return list(range(first, last + 1))
