"""Input settings: one frozen value that decides the shape and values of every encoder's input tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from lwfed.catalog.encoder import AUDIOSET, HALF, Normalise
from lwfed.types.modalities import kind_of


class Window(NamedTuple):
    """The shape of a sensor's windows: T samples of C axes."""

    length: int
    axes: int


@dataclass(frozen=True, slots=True)
class InputSettings:
    """How examples become tensors.

    Attributes:
        modalities: The modalities to read, sorted.
        image_size: Pixels per side.
        tokenizer: A folder or a hub id; None or `bytes`: the byte-level tokenizer, which needs no file.
        max_tokens: Captions are truncated to this many tokens.
        vocab_size: Upper bound of token ids (exclusive); None if unknown.
        num_mel_bins: Mel bins M of a spectrogram.
        frames: Frames F of a spectrogram, 10 ms each (AST's max_length).
        image_normalise: Mean and standard deviation of pixels in [0, 1], three of each.
        audio_normalise: Mean and standard deviation of log-mels, one of each; AudioSet's by default.
        windows: Sensor -> shape of its windows.
    """

    modalities: tuple[str, ...]
    image_size: int = 224
    tokenizer: str | None = None
    max_tokens: int = 40
    vocab_size: int | None = None
    num_mel_bins: int = 128
    frames: int = 1024
    image_normalise: Normalise = HALF
    audio_normalise: Normalise = AUDIOSET
    windows: Mapping[str, Window] = field(default_factory=dict)


def settings_for(inputs: Mapping[str, Mapping[str, Any]]) -> InputSettings:
    """Merges the input settings of several encoders.

    Args:
        inputs: Modality -> its encoder's settings, as returned by `lwfed.models.build.input_settings`: `image_size` (a
            number, or two equal ones); `tokenizer`, `max_tokens` and optionally `vocab_size`; `num_mel_bins` and
            `max_length` (frames); `normalise`; for a sensor `length` and `axes`. Missing settings keep their defaults.

    Raises:
        ValueError: A key is unknown, or images are not square.
    """
    sensors = [modality for modality in inputs if kind_of(modality) == "series"]
    values: dict[str, Any] = {
        "modalities": tuple(sorted(inputs)),
        "windows": {modality: Window(**inputs[modality]) for modality in sensors},
    }
    for modality, wanted in inputs.items():
        if modality in sensors:
            continue
        for key, value in wanted.items():
            name = {"max_length": "frames", "normalise": f"{modality}_normalise"}.get(key, key)
            if name == "modalities" or name not in InputSettings.__dataclass_fields__:
                raise ValueError(f"the {modality} encoder has the unknown input setting `{key}`")
            if name == "image_size" and not isinstance(value, int):
                if len(set(value)) != 1:
                    raise ValueError(f"images of {tuple(value)} pixels are not square: set img_size to one number")
                value = value[0]
            values[name] = value
    return InputSettings(**values)
