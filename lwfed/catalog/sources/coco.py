"""Captioned images in COCO's layout; see `lwfed.data.sources.coco`."""

from lwfed.catalog.source import SourceDescription

DESCRIPTION = SourceDescription(
    modalities=frozenset({"image", "text"}),
    labels=False,
    captions=5,
    root="train2017/ val2017/ annotations/",
)
