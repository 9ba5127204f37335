"""Clipping: a bound on how far each client can move the model."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from lwfed.types.section import Section


class Settings(Section):
    """A bound on the Euclidean norm of each client's change."""

    kind: Literal["clipped"] = "clipped"
    max_norm: float = Field(
        gt=0,
        description="largest norm of a client's change over all its trained parameters; a larger one is scaled down",
    )
