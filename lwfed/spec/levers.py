"""Levers: what makes a stage cheap without changing what is learned."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from lwfed.spec.base import Section


class LeversSpec(Section):
    """Which levers may be used; `lwfed plan` shows those that are, and what each saves."""

    last_block: Literal["auto", "full", "row", "absorbed"] = Field(
        "auto",
        description="the last block present, where the feature is one token: row computes it for that token alone, "
        "absorbed takes K and V into its query, auto is the cheapest, full leaves it as it is",
    )
    prefix_cache: Literal["auto", "always", "never"] = Field(
        "auto", description="clients keep the outputs of frozen blocks; auto: where that pays over the stage's rounds"
    )
    views: int = Field(
        4,
        ge=0,
        description="augmented views of an image that are kept and cycled over; 0: each epoch crops again, and frozen "
        "blocks of images are computed again too",
    )
