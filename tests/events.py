"""Events as a kind and JSON values, for tests that look at what was reported."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lwfed.run.events import Emit, Event, RoundDone, RunStarted, StageDone, Summarised, values_of

Listener = Callable[[str, dict[str, Any]], object]


def plain(event: Event) -> tuple[str, dict[str, Any]]:
    """Returns an event's kind and values; of one that has a record, the record."""
    if isinstance(event, RunStarted | RoundDone | StageDone | Summarised):
        return event.kind, event.record.to_values()
    return event.kind, values_of(event)


def emit_to(listener: Listener) -> Emit:
    """Returns an Emit that passes events on to a function of kind and values."""

    def emit(event: Event) -> None:
        listener(*plain(event))

    return emit


def ignore(event: Event) -> None:
    """Ignores an event."""
