"""Patches of an image, each through the same MLPs; its feature is their mean."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import unfold

from lwfed.catalog.encoders import patchmlp
from lwfed.models.protocol import Encoder, Prefixes, State, require_depth
from lwfed.spec.model import EncoderSpec

PREFIXES = Prefixes(stem="stem.", blocks="blocks.", norm=None)


class Block(nn.Module):
    """A residual layer."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)

    def forward(self, tokens: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        return tokens + self.linear(tokens).relu()


class PatchMlp(Encoder):
    """Residual layers over patches."""

    def __init__(self, *, patch: int, width: int, depth: int) -> None:
        blocks = nn.ModuleList(Block(width) for _ in range(depth))
        super().__init__(nn.Linear(3 * patch * patch, width), blocks=blocks, width=width, init_std=0.2)
        self.patch = patch

    def embed(self, inputs: Float[Tensor, "B 3 H W"]) -> State:
        return State(self.stem(unfold(inputs, self.patch, stride=self.patch).transpose(1, 2)), None)

    def advance(self, state: State, *, start: int, stop: int) -> State:
        tokens = state.tokens
        for block in self.blocks[start:stop]:
            tokens = self.through(block, tokens)
        return State(tokens, None)

    def pool(self, state: State) -> Float[Tensor, "B D"]:
        return state.tokens.mean(1)


def build(encoder: EncoderSpec, *, depth: int | None) -> Encoder:
    settings = config(encoder)
    return PatchMlp(
        patch=settings["patch"], width=settings["width"], depth=require_depth(depth, whole=settings["depth"])
    )


def input_settings(encoder: EncoderSpec) -> dict[str, Any]:
    return {"image_size": config(encoder)["image_size"]}


def config(encoder: EncoderSpec) -> dict[str, Any]:
    return {**patchmlp.SETTINGS, **encoder.config}


def library_config(encoder: EncoderSpec, *, depth: int) -> dict[str, Any]:
    return {**config(encoder), "depth": depth}


def adapt(encoder: EncoderSpec, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    return tensors
