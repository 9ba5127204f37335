"""Images and sounds of places in ADVANCE's layout; see `lwfed.data.sources.advance`."""

from __future__ import annotations

from pydantic import Field

from lwfed.catalog.source import SourceDescription
from lwfed.types.section import Section


class Settings(Section):
    """The keys that the source adds to the spec's `data`."""

    test_fraction: float = Field(
        0.2, gt=0, lt=1, description="advance without train/ and test/ folders: fraction held out for testing, by seed"
    )


DESCRIPTION = SourceDescription(
    modalities=frozenset({"image", "audio"}),
    labels=True,
    root="[train/ test/] vision/ sound/",
    num_classes=13,
    settings=Settings,
)
