"""`RUN:STAGE`: the parent that a run starts from, and the first stage that the run trains itself."""

from __future__ import annotations

from lwfed.types.errors import SpecError

Parent = tuple[str, int]
"""A run's id, and a stage counted from 1."""


def parse_parent(text: str | None) -> Parent | None:
    """Parses `RUN:STAGE`; the run's id may itself contain colons.

    Args:
        text: The parent's name; None or empty for no parent.

    Raises:
        SpecError: The text does not name a stage of a run.
    """
    if not text:
        return None
    run_id, _, stage = text.rpartition(":")
    if not run_id or not stage.isdecimal() or int(stage) < 1:
        raise SpecError(
            f"`{text}` does not name a stage of a parent run", remedy="write RUN:STAGE, such as mine-1234abcd:3"
        )
    return run_id, int(stage)


def parent_text(parent: Parent | None) -> str:
    """Formats a parent for `parse_parent`; empty for no parent."""
    return "" if parent is None else f"{parent[0]}:{parent[1]}"
