"""What the rest of lwfed must know of a launcher before it is made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lwfed.catalog import describe


def nothing_more(spec: Any) -> None:
    """Checks nothing: the launcher takes any spec."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LauncherDescription:
    """A place where a round's clients run.

    Attributes:
        remote: Whether it is another machine: what this one sees of the data says nothing about it.
        parallel: Whether it runs several clients at a time, and clients with several devices.
        check: Raises ValueError where a whole spec (`lwfed.spec.run.RunSpec`) lacks what the launcher needs.
    """

    remote: bool
    parallel: bool
    check: Callable[[Any], None] = nothing_more


def launcher_kind(name: str) -> LauncherDescription:
    """Returns the description of a launcher."""
    description: LauncherDescription = describe("launchers", name).DESCRIPTION
    return description
