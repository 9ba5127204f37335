"""Ten examples made on the spot."""

from __future__ import annotations

from pydantic import Field

from lwfed.catalog.source import SourceDescription
from lwfed.types.section import Section


class Settings(Section):
    """What the source adds to the spec's `data`."""

    brightness: int = Field(200, ge=0, le=255, description="ten: of the brighter half of an image")


DESCRIPTION = SourceDescription(
    modalities=frozenset({"image", "text"}), labels=True, captions=2, num_classes=2, settings=Settings
)
