"""Refs read as what they must be: a damaged one is named by its key."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

from lwfed.store.ahead import parallel_map
from lwfed.store.keys import remedy_for
from lwfed.store.protocol import Store
from lwfed.types.errors import CheckpointError
from lwfed.types.record import Record

R = TypeVar("R", bound=Record)

TOGETHER = 8
"""Requests to a store in work at a time, where many small objects are read."""


def read_object(store: Store, key: str, **fields: type) -> dict[str, Any] | None:
    """Reads a ref that is a JSON object.

    Args:
        store: The store.
        key: The ref's key.
        fields: Name of a field that it must have -> the field's type.

    Returns:
        The object; None if there is no such ref.

    Raises:
        CheckpointError: It is no object, or lacks a field.
    """
    values = store.read_ref(key)
    if values is None:
        return None
    if not isinstance(values, dict):
        raise damaged(key, "it is no JSON object")
    for name, kind in fields.items():
        if not isinstance(values.get(name), kind):
            raise damaged(key, f"`{name}` is wrong" if name in values else f"it lacks `{name}`")
    return values


def read_record(store: Store, key: str, kind: type[R]) -> R | None:
    """Reads a record; None if it does not exist. Raises CheckpointError, with its key, if it is damaged."""
    values = read_object(store, key)
    try:
        return None if values is None else kind.of(values)
    except CheckpointError as error:
        raise damaged(key, error.problem) from None


def read_together(store: Store, keys: Sequence[str], kind: type[R]) -> list[R | None]:
    """Reads many records, several at a time, in the order of their keys; each as `read_record` does."""
    return parallel_map(lambda key: read_record(store, key, kind), keys, threads=TOGETHER)


def damaged(key: str, what: str) -> CheckpointError:
    """Returns the error for a ref that is not what it must be."""
    return CheckpointError(f"{key} is damaged: {what}", remedy=remedy_for(key))
