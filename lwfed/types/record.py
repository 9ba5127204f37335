"""The base class of all records: JSON objects in a store.

A record written by another version of lwfed can still be read if it lacks optional fields or has additional ones;
additional fields are kept.
"""

from __future__ import annotations

from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from lwfed.types.errors import CheckpointError

Metrics = dict[str, float]
"""Name -> value."""


class Record(BaseModel):
    """A JSON object in a store."""

    model_config = ConfigDict(frozen=True, extra="allow", protected_namespaces=())

    @classmethod
    def of(cls, values: Any) -> Self:
        """Validates JSON values. Raises CheckpointError if they do not fit the record."""
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise CheckpointError(
                f"a {cls.__name__} in the store is damaged: {where}: {first['msg']}",
                remedy="restore it from a backup, or train again with --fresh",
            ) from None

    def to_values(self) -> dict[str, Any]:
        """Returns JSON values of the fields that were set, without defaults."""
        return self.model_dump(mode="json", exclude_unset=True)

    def changed(self, **values: Any) -> Self:
        """Returns a copy of the record with the given values."""
        return self.model_copy(update=values)
