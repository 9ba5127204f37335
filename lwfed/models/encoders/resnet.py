"""ResNet (timm) as an encoder: its blocks are the stages of residual blocks, its feature the mean over the last map.

He et al. 2016, arXiv 1512.03385. Between stages, feature maps travel as tokens, one per pixel; maps are square.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lwfed.catalog.encoders.resnet import CHANNELS, FIXED, IMAGE_SIZE, check_sizes, stages, widths
from lwfed.models.batchnorm import BatchNorm2d
from lwfed.models.protocol import Encoder, Prefixes, State, require_depth
from lwfed.models.timm_config import exported_config, timm_config, timm_model
from lwfed.models.weights import normalise_of
from lwfed.spec.model import EncoderSpec
from lwfed.types.errors import DataError, SpecError

PREFIXES = Prefixes(stem="", blocks="layer", norm=None, first=1)
INIT_STD = 0.02
"""BatchNorm undoes a convolution's scale; with this one, maps stay within bounds before a batch was seen, too."""
TRACKED = ".num_batches_tracked"


class Stage(nn.Sequential):
    """A stage of residual blocks, from tokens to tokens."""

    def forward(self, input: Float[Tensor, "B T C"]) -> Float[Tensor, "B U D"]:
        return _to_tokens(super().forward(_to_map(input)))


class ResNet(Encoder):
    """A timm ResNet: its stem is the library's model without stages and classifier, so that its names are timm's."""

    def __init__(self, model: Any, *, depth: int | None, widths: tuple[int, ...]) -> None:
        names = [f"layer{number}" for number in range(1, len(CHANNELS) + 1)]
        filled = [Stage(*layer) for layer in (getattr(model, name) for name in names) if len(layer)]
        for name in names:
            setattr(model, name, nn.Sequential())
        depth = require_depth(depth, whole=len(filled))
        blocks = nn.ModuleList(filled[:depth])
        super().__init__(model, blocks=blocks, width=widths[depth], whole_width=widths[-1], init_std=INIT_STD)

    def embed(self, inputs: Float[Tensor, "B 3 H W"]) -> State:
        stem: Any = self.stem
        return State(_to_tokens(stem.maxpool(stem.act1(stem.bn1(stem.conv1(inputs))))), None)

    def advance(self, state: State, *, start: int, stop: int) -> State:
        tokens = state.tokens
        for block in self.blocks[start:stop]:
            tokens = self.through(block, tokens)
        return State(tokens, None)

    def pool(self, state: State) -> Float[Tensor, "B D"]:
        return _to_map(state.tokens).mean((2, 3))


def _to_tokens(pixels: Float[Tensor, "B C H W"]) -> Float[Tensor, "B H*W C"]:
    return pixels.flatten(2).transpose(1, 2)


def _to_map(tokens: Float[Tensor, "B T C"]) -> Float[Tensor, "B C H W"]:
    """Returns tokens as a square map; always in the same layout, so that cached tokens compute the same bits."""
    side = math.isqrt(tokens.shape[1])
    return tokens.transpose(1, 2).unflatten(2, (side, side)).contiguous()


def build(encoder: EncoderSpec, *, depth: int | None) -> Encoder:
    """Builds the encoder on the default device; see `protocol.Family`."""
    arguments = {key: value for key, value in config(encoder).items() if key != "img_size"}
    builder = "timm.models.resnet.ResNet"
    model = timm_model(encoder, {**arguments, **FIXED, "norm_layer": BatchNorm2d}, near="resnet*", builder=builder)
    channels = tuple(widths(encoder))
    built = tuple(info["num_chs"] for info in model.feature_info)[: len(channels)]
    if built != channels:
        raise SpecError(
            f"this {encoder.arch} has stages of {built} channels instead of {channels}",
            remedy="name its `layers` and `channels` in `config`",
        )
    return ResNet(model, depth=depth, widths=channels)


def input_settings(encoder: EncoderSpec) -> dict[str, Any]:
    """Returns `image_size`, pixels per side, and `normalise`."""
    return {"image_size": _image_size(encoder), "normalise": normalise_of(encoder)}


def config(encoder: EncoderSpec) -> dict[str, Any]:
    """Returns timm's model arguments, see `timm_config`, and `img_size`, which timm's model does not need."""
    settings = timm_config(encoder, fixed=FIXED)
    try:
        check_sizes(settings)
    except ValueError as error:
        raise DataError(
            f"the config.json of {encoder.weights} is wrong: {error}", remedy="copy or download it again"
        ) from None
    return settings


def library_config(encoder: EncoderSpec, *, depth: int) -> dict[str, Any]:
    """Returns the config.json of an export with `depth` stages, see `exported_config`; the others are empty."""
    arguments = config(encoder)
    size = arguments.pop("img_size", IMAGE_SIZE)
    layers, channels = (sizes[:depth] for sizes in stages(encoder, arguments))
    empty = len(CHANNELS) - depth
    arguments |= {"layers": [*layers, *[0] * empty], "channels": [*channels, *channels[-1:] * empty]}
    return exported_config(encoder, fixed=FIXED, arguments=arguments, size=size, first_conv="conv1", classifier="fc")


def adapt(encoder: EncoderSpec, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Drops the classifier, and adds BatchNorm's counters of batches, which files from older libraries lack."""
    with torch.device("meta"):
        model = build(encoder, depth=None)
    names = [PREFIXES.to_library(name) for name in model.state_dict()]
    counters = {name: torch.zeros((), dtype=torch.int64) for name in names if name.endswith(TRACKED)}
    return counters | {name: tensors[name] for name in names if name in tensors}


def _image_size(encoder: EncoderSpec) -> int:
    return int(config(encoder).get("img_size", IMAGE_SIZE))
