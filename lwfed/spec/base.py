"""Building blocks of a spec's sections: records without unknown keys, and keys whose value is a name in the catalog."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Any

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from lwfed.catalog import names
from lwfed.types.section import LATER, Section

__all__ = ["LATER", "Choice", "Section"]


@dataclass(frozen=True, slots=True)
class Choice:
    """Marks a key whose value is a name in the catalog; the names are looked up when a spec is read.

    Attributes:
        kind: Name of a folder in `lwfed.catalog`.
    """

    kind: str

    def check(self, name: str) -> str:
        """Returns the name. Raises an error with the known names, and the nearest of them, if it is unknown."""
        known = names(self.kind)
        if name in known:
            return name
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
        quoted = [f"'{other}'" for other in known]
        expected = " or ".join(filter(None, [", ".join(quoted[:-1]), quoted[-1]]))
        hint = f"; did you mean '{near[0]}'?" if near else ""
        raise PydanticCustomError("choice", "Input should be {expected}{hint}", {"expected": expected, "hint": hint})

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self.check, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return {**handler(schema), "enum": list(names(self.kind))}
