"""Ten images whose left or right half is bright; the last two are for testing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from lwfed.data.folders import of_split
from lwfed.data.protocol import Example, Signal, Waveform
from lwfed.spec.data import DataSpec
from lwfed.types.canonical import digest_of
from lwfed.types.errors import DataError


@dataclass(frozen=True)
class Ten:
    """The examples."""

    brightness: int
    classes: tuple[str, ...] = ("left", "right")
    root: None = None
    files: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def examples(self, split: str) -> tuple[Example, ...]:
        made = tuple(
            Example(id=f"ten-{n}", label=n % 2, captions=(f"{n} {side}", f"the {side} of {n}"), fields={"side": side})
            for n, side in enumerate(self.classes * 5)
        )
        return of_split(split, train=made[:8], test=made[8:])

    def version(self) -> str:
        return digest_of({"source": "ten", "brightness": self.brightness})

    def left_out(self) -> dict[str, int]:
        return {}

    def image(self, example: Example) -> Image.Image:
        pixels = np.full((16, 16, 3), int(example.id.removeprefix("ten-")), np.uint8)
        half = slice(0, 8) if example.label == 0 else slice(8, 16)
        pixels[:, half] += np.uint8(self.brightness)
        return Image.fromarray(pixels)

    def waveform(self, example: Example) -> tuple[Waveform, int]:
        raise DataError(f"{example.id} has no sound", remedy="use the image and text encoders")

    def series(self, example: Example, modality: str) -> Signal:
        raise DataError(f"{example.id} has no {modality}", remedy="use the image and text encoders")


def open_data(data: DataSpec) -> Ten:
    return Ten(brightness=data.own["brightness"])
