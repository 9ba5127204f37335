"""Keys, and what is said where the object behind one is missing or damaged: the same for every store."""

from __future__ import annotations

from lwfed.types.errors import CheckpointError


def checked(key: str) -> str:
    """Returns a key as it is. Raises CheckpointError where it leads out of the store."""
    if ".." in key.split("/") or key.startswith("/"):
        raise CheckpointError(f"`{key}` is not a key", remedy="keys are relative and hold no `..`")
    return key


def not_there(key: str, *, store: str) -> CheckpointError:
    """Tells that an object is missing."""
    return CheckpointError(f"{key} is not in the store {store}", remedy=remedy_for(key))


def other_length(key: str, *, found: int, expected: int) -> CheckpointError:
    """Tells that an object is not as long as it was written."""
    return CheckpointError(f"{key} is corrupted: it has {found} bytes, not {expected}", remedy=remedy_for(key))


def ends_early(key: str, *, byte: int) -> CheckpointError:
    """Tells that an object has less than was asked for."""
    return CheckpointError(f"{key} ends before byte {byte}", remedy=remedy_for(key))


def remedy_for(key: str) -> str:
    """Says what to do about a missing or damaged object."""
    stage = "/".join(key.split("/")[:2])
    where = f"remove {stage} from the store" if key.startswith("stages/") else "restore it from a backup"
    return f"{where}, or train again with --fresh"
