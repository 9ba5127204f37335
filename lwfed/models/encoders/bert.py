"""BERT (transformers) as an encoder; its feature is the first token, without the pooler's layer.

Devlin et al. 2019, arXiv 1810.04805.
"""

from __future__ import annotations

from typing import Any

from transformers.models.bert.configuration_bert import BertConfig
from transformers.models.bert.modeling_bert import BertModel

from lwfed.models.feature_row import absorbed_attention, of_linears, row_attention
from lwfed.models.protocol import Encoder, LastBlock, Prefixes, State
from lwfed.models.text_encoder import TextEncoder, build_bert, text_settings
from lwfed.models.transformers_config import Library
from lwfed.spec.model import EncoderSpec

PREFIXES = Prefixes(stem="embeddings.", blocks="encoder.layer.", norm=None)
LIBRARY = Library(BertConfig, BertModel, {"add_pooling_layer": False})
config, library_config, adapt = LIBRARY.config, LIBRARY.library_config, LIBRARY.adapt
"""See `protocol.Family`."""


class Bert(TextEncoder):
    """A transformers BERT: stem = embeddings, blocks = layers."""

    def advance_row(self, state: State, *, index: int, how: LastBlock) -> State:
        block: Any = self.blocks[index]
        attention, first = block.attention.self, state.tokens[:, :1]
        attend = absorbed_attention if how == "absorbed" else row_attention
        mixed = attend(
            first,
            state.tokens,
            projections=of_linears(attention.query, attention.key, attention.value),
            heads=attention.num_attention_heads,
            mask=state.mask,
            dropout=attention.dropout.p if attention.training else 0.0,
        )
        return State(block.feed_forward_chunk(block.attention.output(mixed, first)), None)


def build(encoder: EncoderSpec, *, depth: int | None) -> Encoder:
    """Builds the encoder on the default device; see `protocol.Family`."""
    return build_bert(Bert, encoder, library=LIBRARY, depth=depth)


def input_settings(encoder: EncoderSpec) -> dict[str, Any]:
    """Returns the requirements for texts; see `text_settings`."""
    return text_settings(encoder, LIBRARY.settings(encoder))
