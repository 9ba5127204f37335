"""What the encoders want to be fed: one frozen value that decides every input tensor's shape and numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class InputSettings:
    """How examples become tensors.

    Attributes:
        modalities: Which inputs are made, sorted.
        image_size: Pixels a side.
        tokenizer: A folder or a hub id; None or `bytes`: the byte-level one, which needs no file.
        max_tokens: Captions are cut at this many tokens.
        vocab_size: Ids are below this; None where it is not known.
        num_mel_bins: Mel bins M of a spectrogram.
        frames: Frames F of a spectrogram, 10 ms each (AST's max_length).
    """

    modalities: tuple[str, ...]
    image_size: int = 224
    tokenizer: str | None = None
    max_tokens: int = 40
    vocab_size: int | None = None
    num_mel_bins: int = 128
    frames: int = 1024


def settings_for(inputs: Mapping[str, Mapping[str, Any]]) -> InputSettings:
    """Joins what each encoder wants.

    Args:
        inputs: Modality -> what its encoder wants, as `lwfed.models.build.input_settings` says it:
            `image_size` (a number, or two equal ones); `tokenizer`, `max_tokens` and perhaps `vocab_size`;
            `num_mel_bins` and `max_length` (frames). What is left out keeps its default.

    Raises:
        ValueError: A key is not known, or images are not square.
    """
    values: dict[str, Any] = {"modalities": tuple(sorted(inputs))}
    for modality, wanted in inputs.items():
        for key, value in wanted.items():
            name = "frames" if key == "max_length" else key
            if name == "modalities" or name not in InputSettings.__dataclass_fields__:
                raise ValueError(f"the {modality} encoder wants `{key}`, which the data do not know")
            if name == "image_size" and not isinstance(value, int):
                if len(set(value)) != 1:
                    raise ValueError(f"images of {tuple(value)} pixels are not square: set img_size to one number")
                value = value[0]
            values[name] = value
    return InputSettings(**values)
