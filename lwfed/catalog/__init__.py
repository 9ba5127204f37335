"""The catalog: everything a spec can choose by name, each choice described in its own file without torch.

A folder is a kind of choice, and each file in it is a choice, found by its name; there is no list of them. The
implementation has the same name in `lwfed.models`, `lwfed.data`, `lwfed.federated` or `lwfed.launch`. A description
affects results only through a stage's plan.
"""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules
from types import ModuleType
from typing import Annotated, Any, Union

from pydantic import Field


def names(kind: str) -> tuple[str, ...]:
    """Returns the names of a kind's choices, sorted.

    Args:
        kind: A folder of the catalog, such as `aggregators`.
    """
    return tuple(sorted(found.name for found in iter_modules(import_module(f"lwfed.catalog.{kind}").__path__)))


def describe(kind: str, name: str) -> ModuleType:
    """Returns the module that describes a choice; `name` must be one of `names(kind)`."""
    return import_module(f"lwfed.catalog.{kind}.{name}")


def settings_of(kind: str) -> Any:
    """Returns the union of the settings types of a kind's choices, with their key `kind` as discriminator."""
    types = tuple(describe(kind, name).Settings for name in names(kind))
    return types[0] if len(types) == 1 else Annotated[Union[types], Field(discriminator="kind")]  # noqa: UP007  # of a tuple
