"""MobileBERT (transformers) as an encoder; its feature is the first token, without the pooler's layer.

Sun et al. 2020, arXiv 2004.02984: narrow blocks between a wide input and output, and norms that only scale and shift.
"""

from __future__ import annotations

from typing import Any

from jaxtyping import Float
from torch import Tensor
from transformers.models.mobilebert.configuration_mobilebert import MobileBertConfig
from transformers.models.mobilebert.modeling_mobilebert import MobileBertModel

from lwfed.models.feature_row import of_linears, row_attention
from lwfed.models.protocol import Encoder, LastBlock, Prefixes, State
from lwfed.models.text_encoder import TextEncoder, build_bert, text_settings
from lwfed.models.transformers_config import Library
from lwfed.spec.model import EncoderSpec

PREFIXES = Prefixes(stem="embeddings.", blocks="encoder.layer.", norm=None)
LIBRARY = Library(MobileBertConfig, MobileBertModel, {"add_pooling_layer": False})
config, library_config, adapt = LIBRARY.config, LIBRARY.library_config, LIBRARY.adapt
"""See `protocol.Family`."""


class MobileBert(TextEncoder):
    """A transformers MobileBERT: stem = embeddings, blocks = layers."""

    def advance_row(self, state: State, *, index: int, how: LastBlock) -> State:
        """Computes keys and values of all tokens, whatever `how`: a bottleneck lies before the keys' projection."""
        block: Any = self.blocks[index]
        attention, first = block.attention.self, state.tokens[:, :1]
        query, _, _, residual = block.bottleneck(first) if block.use_bottleneck else [first] * 4
        keys, values = _sources(block, state.tokens)
        mixed = row_attention(
            query,
            keys,
            values=values,
            projections=of_linears(attention.query, attention.key, attention.value),
            heads=attention.num_attention_heads,
            mask=state.mask,
            dropout=attention.dropout.p if attention.training else 0.0,
        )
        inner = block.attention.output(mixed, residual)
        for network in getattr(block, "ffn", ()):
            inner = network(inner)
        return State(block.output(block.intermediate(inner), inner, first), None)


def _sources(block: Any, tokens: Float[Tensor, "B T D"]) -> tuple[Float[Tensor, "B T K"], Float[Tensor, "B T V"]]:
    """Returns what a block's keys and values are projected from."""
    if not block.use_bottleneck:
        return tokens, tokens
    if block.bottleneck.use_bottleneck_attention:
        shared = block.bottleneck.input(tokens)
        return shared, shared
    return block.bottleneck.attention(tokens) if block.bottleneck.key_query_shared_bottleneck else tokens, tokens


def build(encoder: EncoderSpec, *, depth: int | None) -> Encoder:
    """Builds the encoder on the default device; see `protocol.Family`."""
    return build_bert(MobileBert, encoder, library=LIBRARY, depth=depth)


def input_settings(encoder: EncoderSpec) -> dict[str, Any]:
    """Returns the requirements for texts; see `text_settings`."""
    return text_settings(encoder, LIBRARY.settings(encoder))
