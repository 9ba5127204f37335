"""Modalities: what an example may have. A further sensor is one line here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple


class Modality(NamedTuple):
    """A modality.

    Attributes:
        kind: How its inputs are read, and which encoder families take them: `image`, `text`, `audio`, or `series` for
            the signal of any sensor. A sensor without a name of its own is called `series`, too.
        short: Its name in metrics, such as `t2i/R@1`.
    """

    kind: str
    short: str


MODALITIES: Mapping[str, Modality] = {
    "image": Modality("image", "i"),
    "text": Modality("text", "t"),
    "audio": Modality("audio", "a"),
    "accelerometer": Modality("series", "acc"),
    "gyroscope": Modality("series", "gyr"),
    "series": Modality("series", "s"),
}


def kind_of(modality: str) -> str:
    """Returns the kind of a modality, which must be one of `MODALITIES`."""
    return MODALITIES[modality].kind


def of_kind(kind: str) -> tuple[str, ...]:
    """Returns the modalities of a kind."""
    return tuple(name for name, modality in MODALITIES.items() if modality.kind == kind)


def retrieval_task(query: str, found: str) -> str:
    """Returns the name of the task of finding one modality by another, such as `t2i`."""
    return f"{MODALITIES[query].short}2{MODALITIES[found].short}"
