"""DistilBERT (transformers) as an encoder; its feature is the first token.

Sanh et al. 2019, arXiv 1910.01108.
"""

from __future__ import annotations

from typing import Any

from transformers.models.distilbert.configuration_distilbert import DistilBertConfig
from transformers.models.distilbert.modeling_distilbert import DistilBertModel

from lwfed.models.feature_row import absorbed_attention, of_linears, row_attention
from lwfed.models.protocol import Encoder, LastBlock, Prefixes, State, require_depth
from lwfed.models.text_encoder import TextEncoder, refuse_longer, text_settings
from lwfed.models.transformers_config import Library
from lwfed.spec.model import EncoderSpec

PREFIXES = Prefixes(stem="embeddings.", blocks="transformer.layer.", norm=None)
LIBRARY = Library(DistilBertConfig, DistilBertModel)
config, library_config, adapt = LIBRARY.config, LIBRARY.library_config, LIBRARY.adapt
"""See `protocol.Family`."""


class DistilBert(TextEncoder):
    """A transformers DistilBERT: stem = embeddings, blocks = layers."""

    def advance_row(self, state: State, *, index: int, how: LastBlock) -> State:
        block: Any = self.blocks[index]
        attention, first = block.attention, state.tokens[:, :1]
        attend = absorbed_attention if how == "absorbed" else row_attention
        mixed = attend(
            first,
            state.tokens,
            projections=of_linears(attention.q_lin, attention.k_lin, attention.v_lin),
            heads=attention.n_heads,
            mask=state.mask,
            dropout=attention.dropout.p if attention.training else 0.0,
        )
        first = block.sa_layer_norm(attention.out_lin(mixed) + first)
        return State(block.output_layer_norm(block.ffn.ff_chunk(first) + first), None)


def build(encoder: EncoderSpec, *, depth: int | None) -> Encoder:
    """Builds the encoder on the default device; see `protocol.Family`."""
    settings = LIBRARY.settings(encoder)
    settings.n_layers = depth = require_depth(depth, whole=settings.n_layers)
    refuse_longer(encoder, settings)
    model: Any = LIBRARY.build(encoder, settings)
    layers = model.transformer.layer
    std = settings.initializer_range
    return DistilBert(model.embeddings, layers=layers, depth=depth, width=settings.dim, init_std=std)


def input_settings(encoder: EncoderSpec) -> dict[str, Any]:
    """Returns the requirements for texts; see `text_settings`."""
    return text_settings(encoder, LIBRARY.settings(encoder))
