"""BERT (transformers): its settings, formulas and usage; see `lwfed.models.encoders.bert`."""

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
    "type_vocab_size": 2,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1,
    "hidden_act": "gelu",
}
"""transformers' defaults (Devlin et al. 2019)."""

HUB: dict[str, dict[str, Any]] = {
    f"{owner}bert-base-{kind}": {"model_type": "bert", "vocab_size": size}
    for owner in ("", "google-bert/")
    for kind, size in (("uncased", 30522), ("cased", 28996))
}
"""Hub ids of pretrained weights -> their config, if it differs from the defaults."""


def architecture(encoder: EncoderSettings) -> Architecture | None:
    """Returns the architecture by formulas; see `EncoderDescription.architecture`."""
    c = transformers_settings(encoder, DEFAULTS, model_type="bert", hub=HUB)
    if c is None or c["hidden_act"] != "gelu" or c["hidden_size"] % c["num_attention_heads"]:
        return None
    if encoder.max_tokens > c["max_position_embeddings"]:
        return None
    d, hidden, dropout = c["hidden_size"], c["intermediate_size"], c["hidden_dropout_prob"] > 0
    tensors = {
        **linear("attention.self.query", d, d),
        **linear("attention.self.key", d, d),
        **linear("attention.self.value", d, d),
        **linear("attention.output.dense", d, d),
        **norm("attention.output.LayerNorm", d),
        **linear("intermediate.dense", d, hidden),
        **linear("output.dense", hidden, d),
        **norm("output.LayerNorm", d),
    }
    stem = {
        "word_embeddings.weight": TensorSpec((c["vocab_size"], d)),
        "position_embeddings.weight": TensorSpec((c["max_position_embeddings"], d)),
        "token_type_embeddings.weight": TensorSpec((c["type_vocab_size"], d)),
        **norm("LayerNorm", d),
    }
    shape = BlockShape(
        width=d,
        feed_forward=hidden,
        heads=c["num_attention_heads"],
        post_norm=True,
        dropouts=2 * int(dropout),
        attention_dropout=c["attention_probs_dropout_prob"] > 0,
        masked=True,
    )
    return transformer(
        "bert",
        depth=c["num_hidden_layers"],
        tokens=encoder.max_tokens,
        # the sum of all embeddings, LayerNorm's statistics, the dropout's noise
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
    types=DEFAULTS | HARMLESS,
    usage=text_usage("BertModel", arguments=", add_pooling_layer=False"),
)
