"""Checks keys, parses refs, and makes the errors for missing or damaged objects: the same for every store."""

from __future__ import annotations

from typing import Any

from lwfed.types.canonical import parse
from lwfed.types.errors import CheckpointError


def checked(key: str) -> str:
    """Returns a key unchanged. Raises CheckpointError if it points outside the store."""
    if ".." in key.split("/") or key.startswith("/"):
        raise CheckpointError(f"`{key}` is not a key", remedy="keys are relative and hold no `..`")
    return key


def parsed_ref(key: str, content: bytes) -> Any:
    """Parses a ref. Raises CheckpointError if it is not JSON, or not even text."""
    try:
        return parse(content)
    except ValueError as error:
        raise CheckpointError(f"{key} is not JSON ({error})", remedy=remedy_for(key)) from None


def missing_object(key: str, *, store: str) -> CheckpointError:
    """Returns the error for an object that is missing."""
    return CheckpointError(f"{key} is not in the store {store}", remedy=remedy_for(key))


def wrong_length(key: str, *, found: int, expected: int) -> CheckpointError:
    """Returns the error for an object whose length is wrong."""
    return CheckpointError(f"{key} is corrupted: it has {found} bytes, not {expected}", remedy=remedy_for(key))


def changed_object(key: str) -> CheckpointError:
    """Returns the error for an object that another one has replaced."""
    return CheckpointError(f"{key} was replaced while it was read", remedy="wait until nothing writes to it")


def truncated_object(key: str, *, byte: int) -> CheckpointError:
    """Returns the error for an object that ends before the requested range does."""
    return CheckpointError(f"{key} ends before byte {byte}", remedy=remedy_for(key))


def remedy_for(key: str) -> str:
    """Returns the remedy for a missing or damaged object."""
    stage = "/".join(key.split("/")[:2])
    where = f"remove {stage} from the store" if key.startswith("stages/") else "restore it from a backup"
    return f"{where}, or train again with --fresh"
