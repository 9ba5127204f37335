"""DistilBERT (transformers): its settings, formulas and usage; see `lwfed.models.encoders.distilbert`."""

from __future__ import annotations

from typing import Any

from lwfed.catalog.blocks import BlockShape, block, linear, norm, transformer
from lwfed.catalog.costs import Architecture, Count, Unit, UnitCost
from lwfed.catalog.encoder import EncoderDescription, EncoderSettings
from lwfed.catalog.stored import HARMLESS, transformers_settings
from lwfed.catalog.texts import inputs, text_usage
from lwfed.types.tensors import TensorSpec

DEFAULTS: dict[str, Any] = {
    "vocab_size": 30522,
    "max_position_embeddings": 512,
    "n_layers": 6,
    "n_heads": 12,
    "dim": 768,
    "hidden_dim": 3072,
    "dropout": 0.1,
    "attention_dropout": 0.1,
    "activation": "gelu",
}
"""transformers' defaults (Sanh et al. 2019)."""

ALIASES: dict[str, str] = {"hidden_size": "dim", "num_attention_heads": "n_heads", "num_hidden_layers": "n_layers"}
"""Other names that transformers accepts for these settings."""

HUB: dict[str, dict[str, Any]] = {
    "distilbert-base-uncased": {"model_type": "distilbert"},
    "distilbert/distilbert-base-uncased": {"model_type": "distilbert"},
    "distilbert-base-cased": {"model_type": "distilbert", "vocab_size": 28996},
    "distilbert/distilbert-base-cased": {"model_type": "distilbert", "vocab_size": 28996},
}
"""Hub ids of pretrained weights -> their config, if it differs from the defaults."""


def architecture(encoder: EncoderSettings) -> Architecture | None:
    """Returns the architecture by formulas; see `EncoderDescription.architecture`."""
    c = transformers_settings(encoder, DEFAULTS, model_type="distilbert", hub=HUB, aliases=ALIASES)
    if c is None or c["activation"] != "gelu" or c["dim"] % c["n_heads"]:
        return None
    if encoder.max_tokens > c["max_position_embeddings"]:
        return None
    d, hidden, dropout = c["dim"], c["hidden_dim"], c["dropout"] > 0
    tensors = {
        **linear("attention.q_lin", d, d),
        **linear("attention.k_lin", d, d),
        **linear("attention.v_lin", d, d),
        **linear("attention.out_lin", d, d),
        **norm("sa_layer_norm", d),
        **linear("ffn.lin1", d, hidden),
        **linear("ffn.lin2", hidden, d),
        **norm("output_layer_norm", d),
    }
    stem = {
        "word_embeddings.weight": TensorSpec((c["vocab_size"], d)),
        "position_embeddings.weight": TensorSpec((c["max_position_embeddings"], d)),
        **norm("LayerNorm", d),
    }
    shape = BlockShape(
        width=d,
        feed_forward=hidden,
        heads=c["n_heads"],
        post_norm=True,
        dropouts=int(dropout),
        attention_dropout=c["attention_dropout"] > 0,
        masked=True,
    )
    return transformer(
        "distilbert",
        depth=c["n_layers"],
        tokens=encoder.max_tokens,
        # the sum of both embeddings, LayerNorm's statistics, the dropout's noise
        stem=Unit(stem, UnitCost(saved_fp32=Count(linear=d + 2 + (d if dropout else 0)))),
        block_unit=block(shape, tensors=tensors),
        width=d,
        final_norm=False,
    )


DESCRIPTION = EncoderDescription(
    modality="text",
    final_norm=False,
    feature_token=True,
    inputs=inputs,
    architecture=architecture,
    hub=HUB,
    types=DEFAULTS | HARMLESS | {key: DEFAULTS[own] for key, own in ALIASES.items()},
    usage=text_usage("DistilBertModel"),
)
