"""Which stages a pipeline trains."""

from __future__ import annotations

from collections.abc import Sequence

from lwfed.run.parent import Parent
from lwfed.types.errors import SpecError


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
        named = f"{wanted[0]} to {wanted[-1]}" if wanted else "(none)"
        raise SpecError(f"the stages {named} are no stages in a row", remedy=f"the experiment has stages 1 to {count}")
    if wanted[0] != start:
        left = "no stage before it is named to start from" if parent is None else f"the parent is left at stage {start}"
        raise SpecError(f"training begins at stage {wanted[0]}, and {left}", remedy=f"give --from RUN:{wanted[0]}")
    return list(wanted)
