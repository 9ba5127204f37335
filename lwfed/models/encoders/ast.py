"""AST, the audio spectrogram transformer (transformers), as an encoder; its feature is the CLS token.

Gong et al. 2021, arXiv 2104.01778; the paper uses the CLS token alone, not its mean with the distillation token.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jaxtyping import Float
from timm.layers.pos_embed import resample_abs_pos_embed
from torch import Tensor, nn
from transformers.models.audio_spectrogram_transformer.configuration_audio_spectrogram_transformer import ASTConfig
from transformers.models.audio_spectrogram_transformer.modeling_audio_spectrogram_transformer import ASTModel

from lwfed.models.feature_row import absorbed_attention, of_linears, row_attention
from lwfed.models.protocol import Encoder, LastBlock, Prefixes, State, require_depth
from lwfed.models.transformers_config import Library
from lwfed.models.weights import normalise_of
from lwfed.spec.model import EncoderSpec
from lwfed.types.errors import SpecError

POSITIONS = "embeddings.position_embeddings"
PREFIXES = Prefixes(stem="embeddings.", blocks="layers.", norm="layernorm.")
LIBRARY = Library(ASTConfig, ASTModel)
config, library_config = LIBRARY.config, LIBRARY.library_config
"""See `protocol.Family`."""


class Ast(Encoder):
    """A transformers AST: stem = embeddings, blocks = layers, norm = layernorm."""

    def __init__(self, model: Any, *, depth: int) -> None:
        config = model.config
        blocks = nn.ModuleList(model.layers[:depth])
        super().__init__(model.embeddings, blocks=blocks, width=config.hidden_size, init_std=config.initializer_range)
        self.norm = model.layernorm

    def embed(self, inputs: Float[Tensor, "B F M"]) -> State:
        return State(self.stem(inputs), None)

    def advance(self, state: State, *, start: int, stop: int) -> State:
        tokens = state.tokens
        for block in self.blocks[start:stop]:
            tokens = self.through(block, tokens)
        return State(tokens, None)

    def advance_row(self, state: State, *, index: int, how: LastBlock) -> State:
        block: Any = self.blocks[index]
        attention, norm, first = block.attention, block.layernorm_before, state.tokens[:, :1]
        rate = attention.attention_dropout if attention.training else 0.0
        projections = of_linears(attention.q_proj, attention.k_proj, attention.v_proj)
        heads = attention.num_attention_heads
        if how == "absorbed":
            mixed = absorbed_attention(
                norm(first), state.tokens, projections=projections, heads=heads, dropout=rate, norm=norm
            )
        else:
            tokens = norm(state.tokens)
            mixed = row_attention(tokens[:, :1], tokens, projections=projections, heads=heads, dropout=rate)
        first = block.dropout(attention.o_proj(mixed)) + first
        return State(block.dropout(block.mlp(block.layernorm_after(first))) + first, None)

    def pool(self, state: State) -> Tensor:
        return self.norm(state.tokens)[:, 0]


def build(encoder: EncoderSpec, *, depth: int | None) -> Encoder:
    """Builds the encoder on the default device; see `protocol.Family`."""
    settings = LIBRARY.settings(encoder)
    depth = require_depth(depth, whole=settings.num_hidden_layers)
    settings.num_hidden_layers = depth
    if min(settings.max_length, settings.num_mel_bins) < settings.patch_size:
        raise SpecError(
            f"`max_length` {settings.max_length} x `num_mel_bins` {settings.num_mel_bins} is smaller than a patch",
            remedy=f"make both at least `config.patch_size`, {settings.patch_size}",
        )
    return Ast(LIBRARY.build(encoder, settings), depth=depth)


def input_settings(encoder: EncoderSpec) -> dict[str, Any]:
    """Returns `num_mel_bins`, `max_length`, the number of frames, and `normalise`."""
    settings = LIBRARY.settings(encoder)
    return {
        "num_mel_bins": int(settings.num_mel_bins),
        "max_length": int(settings.max_length),
        "normalise": normalise_of(encoder),
    }


def adapt(encoder: EncoderSpec, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Converts a checkpoint's names, resizes position embeddings to another `max_length`, drops heads of other tasks.

    Positions are resized bicubically over the grid of patches, by timm, as a ViT's are.
    """
    saved = _grid(LIBRARY.settings(encoder.model_copy(update={"config": {}})))
    wanted, resized = _grid(LIBRARY.settings(encoder)), dict(tensors)
    for name, tensor in tensors.items():
        if name.endswith(POSITIONS) and saved != wanted and tensor.shape[1] == 2 + saved[0] * saved[1]:
            resized[name] = resample_abs_pos_embed(tensor, list(wanted), list(saved), num_prefix_tokens=2)
    return LIBRARY.adapt(encoder, resized)


def _grid(config: Any) -> tuple[int, int]:
    """Returns the number of patches along the mel bins and along the frames."""
    bins = (config.num_mel_bins - config.patch_size) // config.frequency_stride + 1
    return bins, (config.max_length - config.patch_size) // config.time_stride + 1
