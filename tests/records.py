"""Records that tests make as JSON, given to functions that take them typed."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar, cast

from lwfed.types.records import RunRecord, StageRecord
from lwfed.types.round_records import RoundRecord

F = TypeVar("F", bound=Callable[..., Any])


def typed(value: Any) -> Any:
    """Reads a RunRecord, StageRecord or RoundRecord, or a list of them; anything else is returned as it is."""
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return [typed(item) for item in value]
    if isinstance(value, dict) and "run_id" in value:
        return RunRecord.of(value)
    if isinstance(value, dict) and "global_round" in value:
        return RoundRecord.of(value)
    return StageRecord.of(value) if isinstance(value, dict) and "key" in value else value


def of_json(function: F) -> F:
    """Returns a function that takes records as JSON, too."""

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        return function(*map(typed, args), **{name: typed(value) for name, value in kwargs.items()})

    return cast(F, call)
