"""`RUN:STAGE`: the run that another one starts from, and the first stage that it trains itself."""

from __future__ import annotations

from lwfed.types.errors import SpecError

Parent = tuple[str, int]
"""A run's id, and a stage counted from 1."""


def parse_parent(text: str | None) -> Parent | None:
    """Reads `RUN:STAGE`; the run's id may have colons of its own.

    Args:
        text: What names the parent; None or empty for none.

    Raises:
        SpecError: It names no stage of a run.
    """
    if not text:
        return None
    run_id, _, stage = text.rpartition(":")
    if not run_id or not stage.isdecimal() or int(stage) < 1:
        raise SpecError(f"`{text}` names no stage of a parent run", remedy="write RUN:STAGE, such as mine-1234abcd:3")
    return run_id, int(stage)


def parent_text(parent: Parent | None) -> str:
    """Returns what `parse_parent` reads; empty for no parent."""
    return "" if parent is None else f"{parent[0]}:{parent[1]}"
