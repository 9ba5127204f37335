"""The built-in scenes of coloured shapes; see `lwfed.data.sources.shapes`."""

from __future__ import annotations

from pydantic import Field

from lwfed.catalog.source import SourceDescription
from lwfed.types.section import Section


class ShapesSize(Section):
    """How many built-in scenes to draw, and how large."""

    train: int = Field(960, ge=4, description="scenes to train on")
    test: int = Field(200, ge=4, description="scenes to test on")
    image_size: int = Field(32, ge=16, description="pixels a side")
    seed: int = Field(0, description="seed of the scenes, apart from the run's seed")


class Settings(Section):
    """What the source adds to the spec's `data`."""

    shapes: ShapesSize = ShapesSize()


DESCRIPTION = SourceDescription(
    modalities=frozenset({"image", "text", "audio"}), labels=True, captions=5, settings=Settings
)
