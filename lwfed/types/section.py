"""The base class of every section of a spec, a plan or a task: frozen, and without unknown keys."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict
from pydantic.fields import FieldInfo


class Section(BaseModel):
    """A part of a spec or a plan."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", populate_by_name=True, validate_default=True, protected_namespaces=()
    )

    @classmethod
    def fields(cls) -> dict[str, FieldInfo]:
        """Returns the section's keys with their descriptions."""
        return dict(cls.model_fields)
