"""DistilBERT (transformers) as an encoder; its feature is the first token.

Sanh et al. 2019, arXiv 1910.01108.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.distilbert.configuration_distilbert import DistilBertConfig
from transformers.models.distilbert.modeling_distilbert import DistilBertModel

from lwfed.models.feature_row import absorbed_attention, of_linears, row_attention
from lwfed.models.protocol import Encoder, LastBlock, Prefixes, State, require_depth
from lwfed.models.transformers_config import Library
from lwfed.models.weights import tokenizer_of
from lwfed.spec.model import EncoderSpec
from lwfed.types.errors import SpecError

PREFIXES = Prefixes(stem="embeddings.", blocks="transformer.layer.", norm=None)
LIBRARY = Library(DistilBertConfig, DistilBertModel)
config, library_config, adapt = LIBRARY.config, LIBRARY.library_config, LIBRARY.adapt
"""See `protocol.Family`."""


class DistilBert(Encoder):
    """A transformers DistilBERT: stem = embeddings; it has no final norm."""

    def __init__(self, model: Any, *, depth: int) -> None:
        stem, config = model.embeddings, model.config
        del stem.position_ids  # not stored, and without values on the meta device; `embed` passes positions instead
        blocks = nn.ModuleList(model.transformer.layer[:depth])
        super().__init__(stem, blocks=blocks, width=config.dim, init_std=config.initializer_range)

    def embed(self, inputs: Mapping[str, Tensor]) -> State:
        ids = inputs["ids"]
        positions = torch.arange(ids.shape[1], device=ids.device).unsqueeze(0)
        return State(self.stem(ids, position_ids=positions), inputs["mask"])

    def advance(self, state: State, *, start: int, stop: int) -> State:
        tokens, mask = state
        attended = None if mask is None else mask[:, None, None, :]
        for block in self.blocks[start:stop]:
            tokens = self.through(block, tokens, attended)
        return State(tokens, mask)

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

    def pool(self, state: State) -> Tensor:
        return state.tokens[:, 0]


def build(encoder: EncoderSpec, *, depth: int | None) -> Encoder:
    """Builds the encoder on the default device; see `protocol.Family`."""
    settings = LIBRARY.settings(encoder)
    depth = require_depth(depth, whole=settings.n_layers)
    if encoder.max_tokens > settings.max_position_embeddings:
        raise SpecError(
            f"`max_tokens` is {encoder.max_tokens}, but the encoder has {settings.max_position_embeddings} positions",
            remedy="lower max_tokens or raise config.max_position_embeddings",
        )
    settings.n_layers = depth
    return DistilBert(LIBRARY.build(encoder, settings), depth=depth)


def input_settings(encoder: EncoderSpec) -> dict[str, Any]:
    """Returns `max_tokens`, `tokenizer` (None: bytes) and `vocab_size`, which token ids must be below."""
    return {
        "max_tokens": encoder.max_tokens,
        "tokenizer": tokenizer_of(encoder),
        "vocab_size": int(LIBRARY.settings(encoder).vocab_size),
    }
