"""Descriptions of launchers: what the rest of lwfed must know about a launcher before creating it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lwfed.catalog import describe


def accept_any(spec: Any) -> None:
    """Checks nothing: the launcher accepts any spec."""


def never(spec: Any) -> bool:
    """Returns that clients are not heard."""
    return False


@dataclass(frozen=True, slots=True, kw_only=True)
class LauncherDescription:
    """A launcher, which runs a round's clients.

    Attributes:
        remote: Whether clients run on other machines, which may see other data than this one.
        parallel: Whether it can run several clients at a time, and clients with several devices.
        holds_updates: Whether clients train in the coordinator's own process, which can keep their updates in memory.
        check: Raises ValueError if a complete spec (`lwfed.spec.run.RunSpec`) lacks what the launcher needs.
        hears: Whether all clients of a complete spec are agents, which are heard while they train, so that a round can
            do without a deadline.
    """

    remote: bool
    parallel: bool
    holds_updates: bool = False
    check: Callable[[Any], None] = accept_any
    hears: Callable[[Any], bool] = never


def launcher_kind(name: str) -> LauncherDescription:
    """Returns the description of a launcher."""
    description: LauncherDescription = describe("launchers", name).DESCRIPTION
    return description
