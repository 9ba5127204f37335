"""What the rest of lwfed must know of a source of data before any of it is read."""

from __future__ import annotations

from dataclasses import dataclass

from lwfed.catalog import describe
from lwfed.types.section import Section


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceDescription:
    """A source of data.

    Attributes:
        modalities: What an example has: `image`, `text`, `audio`.
        labels: Whether examples have class labels.
        captions: Captions of an example, each of which is an input of its own.
        root: What `data.root` must hold, in words; None for data that are made on the spot.
        num_classes: Classes of the data that the source is named after, for a plan made without them; None: not known.
        settings: The keys that the source adds to the spec's `data` section, with their defaults. They are part of
            the plan of runs that use the source.
    """

    modalities: frozenset[str]
    labels: bool
    captions: int = 1
    root: str | None = None
    num_classes: int | None = None
    settings: type[Section] = Section

    @property
    def built_in(self) -> bool:
        """Whether the data are made on the spot: nothing of them can be missing or unreadable."""
        return self.root is None


def data_source(name: str) -> SourceDescription:
    """Returns the description of a source."""
    description: SourceDescription = describe("sources", name).DESCRIPTION
    return description
