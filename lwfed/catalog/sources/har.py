"""Windows of inertial sensors in UCI-HAR's layout, or fed-multimodal's pickles; see `lwfed.data.sources.har`."""

from __future__ import annotations

from pydantic import Field

from lwfed.catalog.source import SourceDescription
from lwfed.types.section import Section


class Settings(Section):
    """The keys that the source adds to the spec's `data`."""

    validation_subjects: int = Field(
        0, ge=0, description="har: training subjects set apart for validation, whole, since a subject's windows overlap"
    )


DESCRIPTION = SourceDescription(
    modalities=frozenset({"accelerometer", "gyroscope"}),
    labels=True,
    root="train/ test/ activity_labels.txt, or acc/ gyro/ with pickles",
    num_classes=6,
    settings=Settings,
)
