"""MobileBERT (transformers): its settings, formulas and usage; see `lwfed.models.encoders.mobilebert`."""

from __future__ import annotations

from typing import Any

from lwfed.catalog.blocks import linear, norm, transformer
from lwfed.catalog.costs import Architecture, Count, Unit, UnitCost
from lwfed.catalog.encoder import EncoderDescription, EncoderSettings
from lwfed.catalog.stored import HARMLESS, transformers_settings
from lwfed.catalog.texts import inputs, text_usage
from lwfed.types.tensors import TensorSpec

DEFAULTS: dict[str, Any] = {
    "vocab_size": 30522,
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
    "num_hidden_layers": 24,
    "num_attention_heads": 4,
    "hidden_size": 512,
    "intermediate_size": 512,
    "embedding_size": 128,
    "intra_bottleneck_size": 128,
    "num_feedforward_networks": 4,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.1,
    "hidden_act": "relu",
    "normalization_type": "no_norm",
    "trigram_input": True,
    "use_bottleneck": True,
    "use_bottleneck_attention": False,
    "key_query_shared_bottleneck": True,
}
"""transformers' defaults (Sun et al. 2020)."""

HUB: dict[str, dict[str, Any]] = {"google/mobilebert-uncased": {"model_type": "mobilebert"}}
"""Hub ids of pretrained weights -> their config, if it differs from the defaults."""

KNOWN = {
    key: DEFAULTS[key]
    for key in (
        "hidden_act", "normalization_type", "trigram_input", "use_bottleneck", "use_bottleneck_attention",
        "key_query_shared_bottleneck",
    )
}  # fmt: skip
"""The formulas are those of the published architecture."""


def architecture(encoder: EncoderSettings) -> Architecture | None:
    """Returns the architecture by formulas; see `EncoderDescription.architecture`."""
    c = transformers_settings(encoder, DEFAULTS, model_type="mobilebert", hub=HUB)
    if c is None or any(c[key] != value for key, value in KNOWN.items()):
        return None
    narrow = c["intra_bottleneck_size"]
    if narrow % c["num_attention_heads"] or encoder.max_tokens > c["max_position_embeddings"]:
        return None
    d, embedded, dropout = c["hidden_size"], 3 * c["embedding_size"], c["hidden_dropout_prob"] > 0
    stem = {
        "word_embeddings.weight": TensorSpec((c["vocab_size"], c["embedding_size"])),
        "position_embeddings.weight": TensorSpec((c["max_position_embeddings"], d)),
        "token_type_embeddings.weight": TensorSpec((c["type_vocab_size"], d)),
        **linear("embedding_transformation", embedded, d),
        **norm("LayerNorm", d),
    }
    products = embedded * d
    cost = UnitCost(
        forward=Count(linear=2 * products),
        backward=Count(linear=4 * products),
        saved=Count(linear=embedded),  # three neighbours' embeddings
        saved_fp32=Count(linear=d + (d if dropout else 0)),  # the sum of all embeddings, the dropout's noise
        weight_copies=products,
    )
    return transformer(
        "mobilebert",
        depth=c["num_hidden_layers"],
        tokens=encoder.max_tokens,
        stem=Unit(stem, cost),
        block_unit=Unit(
            _tensors(c), _block_cost(c, rows=False), dict.fromkeys(("row", "absorbed"), _block_cost(c, rows=True))
        ),
        width=d,
        final_norm=False,
    )


def _tensors(c: dict[str, Any]) -> dict[str, TensorSpec]:
    """Returns a block's tensors."""
    d, b, f = c["hidden_size"], c["intra_bottleneck_size"], c["intermediate_size"]
    tensors = {
        **linear("attention.self.query", b, b),
        **linear("attention.self.key", b, b),
        **linear("attention.self.value", d, b),
        **linear("attention.output.dense", b, b),
        **norm("attention.output.LayerNorm", b),
        **linear("intermediate.dense", b, f),
        **linear("output.dense", f, b),
        **norm("output.LayerNorm", b),
        **linear("output.bottleneck.dense", b, d),
        **norm("output.bottleneck.LayerNorm", d),
    }
    for name in ("input", "attention"):
        tensors |= linear(f"bottleneck.{name}.dense", d, b) | norm(f"bottleneck.{name}.LayerNorm", b)
    for i in range(c["num_feedforward_networks"] - 1):
        tensors |= linear(f"ffn.{i}.intermediate.dense", b, f) | linear(f"ffn.{i}.output.dense", f, b)
        tensors |= norm(f"ffn.{i}.output.LayerNorm", b)
    return tensors


def _block_cost(c: dict[str, Any], *, rows: bool) -> UnitCost:
    """Returns the cost of a block, for all tokens or for the first one alone.

    Keys and values of all tokens: one D x b bottleneck, a b x b and a D x b projection, with b the narrow width. For
    each token that is computed: two bottlenecks (one of which keys share), a b x b query, attention, a b x b output, n
    feed-forward networks of two b x F products, and b x D. For one token, the query's bottleneck is computed again.

    Saved items. Each norm, which scales and shifts, saves its input, and each product its input; a bottleneck's output
    that is only added is not saved. ReLU saves its output, which is the next product's input.

    Args:
        c: The settings.
        rows: Whether only the first token is computed.
    """
    d, b, f, n = c["hidden_size"], c["intra_bottleneck_size"], c["intermediate_size"], c["num_feedforward_networks"]
    heads, dropout = c["num_attention_heads"], c["attention_probs_dropout_prob"] > 0
    shared, own = 2 * d * b + b * b, d * b + 2 * b * b + 2 * n * b * f + b * d  # products per token
    again = d * b if rows else 0  # the query's bottleneck
    noise = d if c["hidden_dropout_prob"] > 0 else 0
    # of all tokens: the input; the keys' bottleneck and its norm's output; keys and values
    saved = Count(linear=d + 4 * b)
    # of a computed token: the residual's bottleneck, query, the attention's output; each network's input and inner map
    each = 3 * b + (n + 1) * b + n * f + noise + (2 * b if rows else 0)
    sums = (n + 1) * b + d  # the inputs of the norms after a sum
    if dropout:
        saved += Count(linear=3 * heads) if rows else Count(square=3 * heads)
    else:
        saved += Count(linear=1)
        sums += heads
    attended = 4 * b, (8 if dropout else 10) * b

    def count(shared: int, own: int, attention: int = 0) -> Count:
        """Sums up products of all tokens, of the computed tokens, and between both."""
        if rows:
            return Count(constant=own, linear=shared + attention)
        return Count(linear=shared + own, square=attention)

    return UnitCost(
        forward=count(2 * shared, 2 * (own + again), attended[0]),
        backward=count(4 * shared, 4 * (own + again), attended[1]),
        input_gradient=count(2 * 2 * d * b, 2 * (d * b + again)),
        saved=saved + count(0, each),
        saved_fp32=count(0, sums),
        input=Count() if rows else Count(linear=d),
        recomputed=Count() if rows else count(2 * shared, 2 * own, attended[0]),
        weight_copies=shared + own,
    )


DESCRIPTION = EncoderDescription(
    modality="text",
    final_norm=False,
    feature_token=True,
    inputs=inputs,
    architecture=architecture,
    hub=HUB,
    types=DEFAULTS | HARMLESS,
    usage=text_usage("MobileBertModel", arguments=", add_pooling_layer=False"),
)
