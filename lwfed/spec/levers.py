"""Levers: options that make a stage cheaper without changing what it learns."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from lwfed.spec.base import Section


class LeversSpec(Section):
    """The levers that may be used; `lwfed plan` shows those in use and what each saves."""

    last_block: Literal["auto", "full", "row", "absorbed"] = Field(
        "auto",
        description="the last present block, if the feature is one token: row computes it for that token alone, "
        "absorbed also absorbs K and V into its query, auto is the cheapest, full computes all tokens",
    )
    prefix_cache: Literal["auto", "always", "never"] = Field(
        "auto", description="clients cache the outputs of frozen blocks; auto: if that pays over the stage's rounds"
    )
    views: int = Field(
        4,
        ge=0,
        description="augmented views of an image that are cached and cycled through; 0: each epoch crops again, and "
        "frozen blocks of images run again too",
    )
