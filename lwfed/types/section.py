"""The base class of every section of a spec, a plan or a task: frozen, and without unknown keys."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from pydantic import BaseModel, ConfigDict
from pydantic.fields import FieldInfo


class Later:
    """Marks a key that came after plans had been stored; see `without_unused`."""


LATER: Final = Later()


class Section(BaseModel):
    """A part of a spec or a plan."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", populate_by_name=True, validate_default=True, protected_namespaces=()
    )

    @classmethod
    def fields(cls) -> dict[str, FieldInfo]:
        """Returns the section's keys with their descriptions."""
        return dict(cls.model_fields)


def without_unused(section: Any, values: Any) -> Any:
    """Removes keys that are marked `LATER` and have their default from a section's plain values, however deep.

    So a plan that does not use such a key stays as it was before there was the key, and so does its digest.

    Args:
        section: A section, or a mapping or sequence with sections in it.
        values: Its plain values; changed in place.

    Returns:
        The values.
    """
    if isinstance(section, Section):
        for name, field in type(section).model_fields.items():
            value = getattr(section, name)
            if LATER in field.metadata and value == field.get_default(call_default_factory=True):
                del values[name]
            else:
                without_unused(value, values[name])
    elif isinstance(section, Mapping):
        for key, value in section.items():
            without_unused(value, values[key])
    elif isinstance(section, tuple | list):
        for value, plain in zip(section, values, strict=True):
            without_unused(value, plain)
    return values
