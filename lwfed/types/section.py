"""The record that every section of a spec, a plan and a task is: frozen, and closed to unknown keys."""

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
        """Returns its keys with their meaning."""
        return dict(cls.model_fields)
