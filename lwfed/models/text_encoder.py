"""What the text encoders from transformers share: token ids and a mask go in, the first token is the feature."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lwfed.models.protocol import Encoder, State, require_depth
from lwfed.models.transformers_config import Library
from lwfed.models.weights import tokenizer_of
from lwfed.spec.model import EncoderSpec
from lwfed.types.errors import SpecError


class TextEncoder(Encoder):
    """Base of the text encoders; they have no final norm.

    Args:
        stem: transformers' embeddings. Its buffers of positions and types are removed: they are not stored, and without
            values on the meta device; `embed` passes both instead.
        layers: transformers' layers, each called with tokens and a mask that broadcasts to [B, H, T, T].
        depth: Number of layers to keep.
        width: D.
        init_std: Standard deviation of seeded weights.
    """

    def __init__(self, stem: nn.Module, *, layers: nn.ModuleList, depth: int, width: int, init_std: float) -> None:
        for name in [name for name, _ in stem.named_buffers(recurse=False)]:
            delattr(stem, name)
        super().__init__(stem, blocks=nn.ModuleList(layers[:depth]), width=width, init_std=init_std)

    def embed(self, inputs: Mapping[str, Tensor]) -> State:
        ids = inputs["ids"]
        places = {"position_ids": torch.arange(ids.shape[1], device=ids.device).unsqueeze(0)}
        if hasattr(self.stem, "token_type_embeddings"):
            places["token_type_ids"] = torch.zeros_like(places["position_ids"])  # one text, no pair
        return State(self.stem(ids, **places), inputs["mask"])

    def advance(self, state: State, *, start: int, stop: int) -> State:
        tokens, mask = state
        attended = None if mask is None else mask[:, None, None, :]
        for block in self.blocks[start:stop]:
            tokens = self.through(block, tokens, attended)
        return State(tokens, mask)

    def pool(self, state: State) -> Tensor:
        return state.tokens[:, 0]


def build_bert(kind: type[TextEncoder], encoder: EncoderSpec, *, library: Library, depth: int | None) -> TextEncoder:
    """Builds the encoder of a model whose parts have BERT's names, on the default device; see `protocol.Family`."""
    settings = library.settings(encoder)
    settings.num_hidden_layers = depth = require_depth(depth, whole=settings.num_hidden_layers)
    refuse_longer(encoder, settings)
    model = library.build(encoder, settings)
    layers, std = model.encoder.layer, settings.initializer_range
    return kind(model.embeddings, layers=layers, depth=depth, width=settings.hidden_size, init_std=std)


def refuse_longer(encoder: EncoderSpec, settings: Any) -> None:
    """Raises SpecError if texts may be longer than the encoder of a configuration has positions."""
    if encoder.max_tokens > settings.max_position_embeddings:
        raise SpecError(
            f"`max_tokens` is {encoder.max_tokens}, but the encoder has {settings.max_position_embeddings} positions",
            remedy="lower max_tokens or raise config.max_position_embeddings",
        )


def text_settings(encoder: EncoderSpec, settings: Any) -> dict[str, Any]:
    """Returns `max_tokens`, `tokenizer` (None: bytes) and `vocab_size`, which token ids must be below."""
    return {
        "max_tokens": encoder.max_tokens,
        "tokenizer": tokenizer_of(encoder),
        "vocab_size": int(settings.vocab_size),
    }
