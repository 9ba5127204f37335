"""Signals of a sensor as an encoder: convolutions are the stem, its feature is the mean of the blocks' last tokens.

The stem is that of the inertial encoders in Feng et al. 2023 (arXiv 2306.09486), with ReLU and a pooling after each
convolution; learned positions are added. The blocks are timm's transformer blocks, or GRUs with a norm and a residual.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from lwfed.catalog.encoders.timeseries import DEFAULTS, MODEL_TYPE, settings_of
from lwfed.models.protocol import Encoder, Prefixes, State, require_depth
from lwfed.models.weights import read_config
from lwfed.spec.model import EncoderSpec
from lwfed.types.errors import DataError

PREFIXES = Prefixes(stem="stem.", blocks="blocks.", norm="norm.")


class Stem(nn.Module):
    """Convolutions that keep the length, each with ReLU and a pooling that halves it."""

    def __init__(self, *, axes: int, channels: tuple[int, ...], kernel: int, length: int) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(
            nn.Conv1d(fan_in, fan_out, kernel, padding=kernel // 2) for fan_in, fan_out in pairwise((axes, *channels))
        )
        self.positions = nn.Parameter(torch.empty(1, length >> len(channels), channels[-1]))

    def forward(self, windows: Float[Tensor, "B T C"]) -> Float[Tensor, "B N D"]:
        values = windows.transpose(1, 2)
        for convolution in self.convolutions:
            values = convolution(values).relu()
            half = values.shape[2] // 2
            values = values[..., : 2 * half].unflatten(2, (half, 2)).amax(3)  # nn.MaxPool1d saves indices too
        return (values.transpose(1, 2) + self.positions).contiguous()


class Gru(nn.Module):
    """A GRU layer after a norm, with a residual around both."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.gru = nn.GRU(width, width, batch_first=True)

    def forward(self, tokens: Float[Tensor, "B N D"]) -> Float[Tensor, "B N D"]:
        return tokens + self.gru(self.norm(tokens))[0]


class TimeSeries(Encoder):
    """Convolutions, blocks and a final norm; weights are drawn with the standard deviation 1 / sqrt(D)."""

    def __init__(self, settings: Mapping[str, Any], *, depth: int) -> None:
        width = settings["channels"][-1]
        stem = Stem(**{key: settings[key] for key in ("axes", "channels", "kernel", "length")})
        attends = settings["blocks"] == "transformer"
        blocks = nn.ModuleList(
            Block(width, settings["num_heads"], mlp_ratio=settings["mlp_ratio"], qkv_bias=True)
            if attends
            else Gru(width)
            for _ in range(depth)
        )
        super().__init__(stem, blocks=blocks, width=width, init_std=width**-0.5)
        self.norm = nn.LayerNorm(width)

    def embed(self, inputs: Float[Tensor, "B T C"]) -> State:
        return State(self.stem(inputs), None)

    def advance(self, state: State, *, start: int, stop: int) -> State:
        tokens = state.tokens
        for block in self.blocks[start:stop]:
            tokens = self.through(block, tokens)
        return State(tokens, None)

    def pool(self, state: State) -> Float[Tensor, "B D"]:
        return self.norm(state.tokens).mean(1)


def build(encoder: EncoderSpec, *, depth: int | None) -> Encoder:
    """Builds the encoder on the default device; see `protocol.Family`."""
    settings = config(encoder)
    return TimeSeries(settings, depth=require_depth(depth, whole=settings["depth"]))


def input_settings(encoder: EncoderSpec) -> dict[str, Any]:
    """Returns `length`, samples per window, and `axes`."""
    settings = config(encoder)
    return {key: settings[key] for key in ("length", "axes")}


def config(encoder: EncoderSpec) -> dict[str, Any]:
    """Returns all settings: those in the weights' folder, overridden by the spec's.

    Raises:
        DataError: The folder has another type of model, or wrong settings.
    """
    found = read_config(encoder.weights)
    if found and found.get("model_type") != MODEL_TYPE:
        raise DataError(
            f"the weights {encoder.weights} are a {str(found.get('model_type'))[:100]}, not a {MODEL_TYPE}",
            remedy=f"name weights of a {MODEL_TYPE}, such as the folder of one in an export",
        )
    try:
        return settings_of({key: found[key] for key in DEFAULTS if key in found} | encoder.config)
    except ValueError as error:  # the spec's own are checked when it is read
        raise DataError(f"the config.json of {encoder.weights} is wrong: {error}", remedy="copy it again") from None


def library_config(encoder: EncoderSpec, *, depth: int) -> dict[str, Any]:
    """Returns the config.json that an export's example reads."""
    settings = config(encoder)
    return {**settings, "model_type": MODEL_TYPE, "channels": list(settings["channels"]), "depth": depth}


def adapt(encoder: EncoderSpec, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Returns a checkpoint's tensors, whose names are already those of the encoder."""
    known = tuple(prefix for prefix in PREFIXES if prefix)
    for name in tensors:
        if not name.startswith(known):
            raise DataError(
                f"the weights {encoder.weights} have the tensor {name[:100]}, which no {MODEL_TYPE} has",
                remedy=f"name weights of a {MODEL_TYPE}",
            )
    return tensors
