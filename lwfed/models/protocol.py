"""The interfaces of encoders and fusions.

An encoder is a stem, a sequence of blocks that can be cut anywhere, and a pooled feature; a fusion joins the
projections of several modalities.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from lwfed.models.recompute import recomputing
from lwfed.spec.model import EncoderSpec

LastBlock = Literal["full", "row", "absorbed"]
"""How the last present block is computed: in full, or for the feature's token alone; see `feature_row`."""


class State(NamedTuple):
    """The state between blocks.

    Attributes:
        tokens: B examples of T tokens of width D; of a feature map with D channels, its T pixels, row by row. T and D
            may differ from block to block.
        mask: Which tokens are real; None if all are.
    """

    tokens: Float[Tensor, "B T D"]
    mask: Bool[Tensor, "B T"] | None


class Encoder(nn.Module):
    """Base of the encoders: F_m = pool after blocks after embed.

    Attributes:
        stem: Maps the input to the first tokens.
        blocks: The present blocks, in order.
        width: D, the width of the feature.
        whole_width: The width of the whole encoder's feature, which the projection head reads. Where fewer blocks have
            another `width`, an adapter follows.
        init_std: Standard deviation of seeded weights.
        recomputed: Whether trained blocks are recomputed in the backward pass.
    """

    recomputed = False

    def __init__(
        self, stem: nn.Module, *, blocks: nn.ModuleList, width: int, init_std: float, whole_width: int | None = None
    ) -> None:
        super().__init__()
        self.stem = stem
        self.blocks = blocks
        self.width = width
        self.whole_width = width if whole_width is None else whole_width
        self.init_std = init_std

    def embed(self, inputs: Any) -> State:
        """Maps a batch of inputs to tokens, with the stem alone."""
        raise NotImplementedError

    def advance(self, state: State, *, start: int, stop: int) -> State:
        """Passes tokens through the blocks `start` to `stop` - 1."""
        raise NotImplementedError

    def through(self, run: Callable[..., Tensor], *inputs: Tensor | None) -> Tensor:
        """Runs a block in full, with recomputation if `recomputed` is set; every full block runs through this."""
        if self.recomputed and torch.is_grad_enabled():  # without gradients, as in a frozen prefix, nothing is saved
            return recomputing(run, *inputs)
        return run(*inputs)

    def advance_row(self, state: State, *, index: int, how: LastBlock) -> State:
        """Passes the feature's token alone through the last block.

        Args:
            state: All tokens before the block.
            index: Index of the last block.
            how: `row` projects keys and values of all tokens, `absorbed` of none, if the block supports it.

        Returns:
            A state for `pool`: with one token, or with all if the feature is not a token or the block's type is
            unknown.
        """
        return self.advance(state, start=index, stop=index + 1)

    def feature(self, state: State, *, start: int, how: LastBlock = "full") -> Float[Tensor, "B D"]:
        """Passes tokens through the blocks from `start` on and pools.

        Args:
            state: Tokens before the block `start`.
            start: The first block to run; the number of blocks if none is left.
            how: How the last block is computed.
        """
        last = len(self.blocks) - 1
        if how == "full" or start > last:
            return self.pool(self.advance(state, start=start, stop=last + 1))
        return self.pool(self.advance_row(self.advance(state, start=start, stop=last), index=last, how=how))

    def pool(self, state: State) -> Float[Tensor, "B D"]:
        """Returns the feature of each example, such as the CLS token, after the final norm if there is one."""
        raise NotImplementedError


class Prefixes(NamedTuple):
    """Prefixes of tensor names by which the library's model names an encoder's units, which change between releases.

    Canonical names are `stem.*`, `blocks.<i>.*` and `norm.*`, after the modality; the rest is the library's name.

    Attributes:
        stem: Prefix of the stem; empty if everything except blocks and norm is the stem.
        blocks: Prefix before a block's number.
        norm: Prefix of the final norm; None if there is none.
        first: The library's number of the first block.
    """

    stem: str
    blocks: str
    norm: str | None
    first: int = 0

    def to_library(self, name: str) -> str:
        """Converts a canonical name without the modality, such as `blocks.3.attn.qkv.weight`, to the library's.

        Raises:
            ValueError: No tensor of the encoder has that name.
        """
        part, _, rest = name.partition(".")
        prefix = getattr(self, part) if part in _PARTS else None
        if prefix is None:
            raise ValueError(f"this encoder has no tensor `{name}`")
        return f"{prefix}{_renumbered(rest, self.first) if part == 'blocks' else rest}"

    def to_canonical(self, name: str) -> str:
        """Converts a library's name to the canonical one without the modality; the inverse of `to_library`."""
        for part in _PARTS:
            prefix = getattr(self, part)
            if prefix is not None and name.startswith(prefix):
                rest = name.removeprefix(prefix)
                return f"{part}.{_renumbered(rest, -self.first) if part == 'blocks' else rest}"
        raise ValueError(f"the library's model has no tensor `{name}`")


_PARTS = ("blocks", "norm", "stem")  # the stem last: its prefix may be empty


def _renumbered(name: str, shift: int) -> str:
    """Adds to the number that a name begins with."""
    number, _, rest = name.partition(".")
    return f"{int(number) + shift}.{rest}"


class Fusion(nn.Module):
    """Base of the fusions: it joins the projections of all modalities into one vector.

    Attributes:
        width: F, the width of the fused vector.
    """

    def __init__(self, *, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, projections: Mapping[str, Float[Tensor, "B P"]]) -> Float[Tensor, "B F"]:
        """Fuses projections, in the order of the modalities' names."""
        raise NotImplementedError


@runtime_checkable
class FusionModule(Protocol):
    """The interface of a fusion's module."""

    def build(self, modalities: Sequence[str], *, width: int) -> Fusion:
        """Builds the fusion of the modalities' projections of width P on the default device."""


@runtime_checkable
class Family(Protocol):
    """The interface of an encoder family's module."""

    PREFIXES: Prefixes

    def build(self, encoder: EncoderSpec, *, depth: int | None) -> Encoder:
        """Builds the encoder with its first `depth` blocks (None: all) on the default device.

        Raises:
            SpecError: The architecture or an override is wrong.
        """

    def input_settings(self, encoder: EncoderSpec) -> dict[str, Any]:
        """Returns the encoder's requirements for its inputs."""

    def config(self, encoder: EncoderSpec) -> dict[str, Any]:
        """Returns `encoder.config`, completed with the architecture settings stored with the weights."""

    def library_config(self, encoder: EncoderSpec, *, depth: int) -> dict[str, Any]:
        """Returns the `config.json` from which the library builds the encoder with `depth` blocks."""

    def adapt(self, encoder: EncoderSpec, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Converts a checkpoint's tensors to the names and shapes of the library's model of this encoder."""


def require_depth(depth: int | None, *, whole: int) -> int:
    """Returns the number of blocks to build; None builds all."""
    if depth is None:
        return whole
    if not 0 <= depth <= whole:
        raise ValueError(f"cannot build {depth} blocks of an encoder that has {whole}")
    return depth
