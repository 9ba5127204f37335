"""Images and sounds of places in ADVANCE's layout; see `lwfed.data.sources.advance`."""

from __future__ import annotations

from lwfed.catalog.source import HeldOut, SourceDescription

DESCRIPTION = SourceDescription(
    modalities=frozenset({"image", "audio"}),
    labels=True,
    root="[train/ test/] vision/ sound/",
    num_classes=13,
    settings=HeldOut,
)
