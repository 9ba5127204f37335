"""Descriptions of data sources: what the rest of lwfed must know about a source before reading data."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import Field

from lwfed.catalog import describe
from lwfed.types.section import Section


class HeldOut(Section):
    """The key of sources that hold out test examples themselves if the data have no test split."""

    test_fraction: float = Field(
        0.2,
        gt=0,
        lt=1,
        description="advance without train/ and test/ folders, table without a split column: fraction held out for "
        "testing, always the same examples",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceDescription:
    """A source of data.

    Attributes:
        modalities: The modalities of an example; see `lwfed.types.modalities`.
        labels: Whether examples have class labels.
        captions: Number of captions per example, each a separate input.
        root: The required contents of `data.root`, in words; None for data that are generated.
        num_classes: Number of classes in the data set that gave the source its name, for a plan made without the data;
            None if unknown.
        absent: The remedy if no example has a modality, or a label, that the spec needs.
        in_buckets: Whether `data.root` may be `s3://bucket/prefix`: its module then has `open_folder`, too.
        settings: The keys that the source adds to the spec's `data` section, with their defaults. They are part of
            the plan of runs that use the source.
    """

    modalities: frozenset[str]
    labels: bool
    captions: int = 1
    root: str | None = None
    num_classes: int | None = None
    absent: str = "use other data, or leave it out"
    in_buckets: bool = False
    settings: type[Section] = Section

    @property
    def built_in(self) -> bool:
        """Whether the data are generated, so that none can be missing or unreadable."""
        return self.root is None


def data_source(name: str) -> SourceDescription:
    """Returns the description of a source."""
    description: SourceDescription = describe("sources", name).DESCRIPTION
    return description
