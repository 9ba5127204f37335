"""What encoders and fusions are to the rest of lwfed.

An encoder is a stem, a row of blocks that can be cut anywhere, and a pooled feature; a fusion joins the projections of
several modalities.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

from jaxtyping import Bool, Float
from torch import Tensor, nn

from lwfed.models.recompute import through
from lwfed.spec.model import EncoderSpec

LastBlock = Literal["full", "row", "absorbed"]
"""How the last block present is computed: whole, or for the feature's token alone; see `feature_row`."""


class State(NamedTuple):
    """What flows from block to block.

    Attributes:
        tokens: B examples of T tokens of width D.
        mask: Which tokens are real; None where all are.
    """

    tokens: Float[Tensor, "B T D"]
    mask: Bool[Tensor, "B T"] | None


class Encoder(nn.Module):
    """Base of the encoders: F_m = pool after blocks after embed.

    Attributes:
        stem: From the input to the first tokens.
        blocks: The blocks that are present, in their order.
        width: D, of the tokens and of the feature.
        init_std: Standard deviation of seeded weights.
        recomputed: Whether trained blocks are computed again in the backward pass.
    """

    recomputed = False

    def __init__(self, stem: nn.Module, *, blocks: nn.ModuleList, width: int, init_std: float) -> None:
        super().__init__()
        self.stem = stem
        self.blocks = blocks
        self.width = width
        self.init_std = init_std

    def embed(self, inputs: Any) -> State:
        """Turns a batch of inputs into tokens: the stem alone."""
        raise NotImplementedError

    def advance(self, state: State, *, start: int, stop: int) -> State:
        """Passes tokens through the blocks `start` to `stop` - 1."""
        raise NotImplementedError

    def through(self, run: Callable[..., Tensor], *inputs: Tensor | None) -> Tensor:
        """Passes inputs through a block as `recomputed` says; every block is run whole by way of this."""
        return through(run, *inputs, again=self.recomputed)

    def advance_row(self, state: State, *, index: int, how: LastBlock) -> State:
        """Passes the feature's token alone through the block `index`, which is the last.

        Args:
            state: All tokens before the block.
            index: Which block.
            how: `row` projects keys and values of all tokens, `absorbed` none, where the block allows it.

        Returns:
            A state that `pool` takes: of one token, or of all where the feature is no token or the block is of an
            unknown kind.
        """
        return self.advance(state, start=index, stop=index + 1)

    def feature(self, state: State, *, start: int, how: LastBlock = "full") -> Float[Tensor, "B D"]:
        """Passes tokens through the blocks from `start` on and pools.

        Args:
            state: Tokens before the block `start`.
            start: The first block; the number of blocks where none is left.
            how: How the last block is computed.
        """
        last = len(self.blocks) - 1
        if how == "full" or start > last:
            return self.pool(self.advance(state, start=start, stop=last + 1))
        return self.pool(self.advance_row(self.advance(state, start=start, stop=last), index=last, how=how))

    def pool(self, state: State) -> Float[Tensor, "B D"]:
        """Returns the feature of each example: the CLS token after the final norm, where there is one."""
        raise NotImplementedError


class Prefixes(NamedTuple):
    """Where an encoder's units are in its library's model: prefixes of its tensors' names.

    Attributes:
        stem: Of the stem; empty where all that is no block and no norm is the stem.
        blocks: Of a block's number.
        norm: Of the final norm; None where there is none.
    """

    stem: str
    blocks: str
    norm: str | None


class Fusion(nn.Module):
    """Base of the fusions: projections of every modality become one vector.

    Attributes:
        width: F, of the fused vector.
    """

    def __init__(self, *, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, projections: Mapping[str, Float[Tensor, "B P"]]) -> Float[Tensor, "B F"]:
        """Fuses projections, in the order of the modalities' names."""
        raise NotImplementedError


@runtime_checkable
class Fusing(Protocol):
    """What the module of a fusion offers."""

    def build(self, modalities: Sequence[str], *, width: int) -> Fusion:
        """Builds the fusion of some modalities' projections of width P on the default device."""


@runtime_checkable
class Family(Protocol):
    """What the module of an encoder family offers."""

    PREFIXES: Prefixes

    def build(self, encoder: EncoderSpec, *, depth: int | None) -> Encoder:
        """Builds the encoder with its first `depth` blocks (None: all) on the default device.

        Raises:
            SpecError: The architecture or an override is wrong.
        """

    def whole_depth(self, encoder: EncoderSpec) -> int:
        """Returns the number of blocks of the whole encoder."""

    def input_settings(self, encoder: EncoderSpec) -> dict[str, Any]:
        """Says what the inputs must look like."""

    def config(self, encoder: EncoderSpec) -> dict[str, Any]:
        """Returns `encoder.config` completed with what the named weights say of the architecture."""

    def library_config(self, encoder: EncoderSpec, *, depth: int) -> dict[str, Any]:
        """Returns the `config.json` with which the library builds the encoder with `depth` blocks."""

    def adapt(self, encoder: EncoderSpec, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Brings a checkpoint's tensors to the names and shapes of the library's model of this encoder."""


def require_depth(depth: int | None, *, whole: int) -> int:
    """Returns the number of blocks to build, None meaning all of them."""
    if depth is None:
        return whole
    if not 0 <= depth <= whole:
        raise ValueError(f"an encoder of {whole} blocks has no first {depth}")
    return depth
