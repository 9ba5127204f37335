"""The built-in scenes of coloured shapes; see `lwfed.data.sources.shapes`."""

from __future__ import annotations

from pydantic import Field

from lwfed.catalog.source import SourceDescription
from lwfed.types.section import Section


class ShapesSize(Section):
    """Number and size of the built-in scenes."""

    train: int = Field(960, ge=4, le=1_000_000, description="scenes for training")
    test: int = Field(200, ge=4, le=1_000_000, description="scenes for testing")
    validation: int = Field(0, ge=0, le=1_000_000, description="scenes for validation, besides train and test")
    image_size: int = Field(32, ge=16, le=4096, description="pixels per side")
    seed: int = Field(0, description="seed of the scenes, independent of the run's seed")


class Settings(Section):
    """The keys that the source adds to the spec's `data`."""

    shapes: ShapesSize = ShapesSize()


DESCRIPTION = SourceDescription(
    modalities=frozenset({"image", "text", "audio"}), labels=True, captions=5, settings=Settings
)
