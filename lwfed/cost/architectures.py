"""The table: encoders whose tensors, FLOPs and activations are known as formulas, so that a plan needs no torch.

An encoder whose arch or config is not understood to the last key is not tabled; `lwfed.models.inspect` counts it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from lwfed.cost.blocks import BlockShape, block, linear, norm
from lwfed.cost.units import Architecture, Count, Unit, UnitCost
from lwfed.spec.model import EncoderSpec
from lwfed.types.tensors import TensorSpec

VIT_SIZES: dict[str, dict[str, int]] = {
    "tiny": {"embed_dim": 192, "depth": 12, "num_heads": 3},
    "small": {"embed_dim": 384, "depth": 12, "num_heads": 6},
    "base": {"embed_dim": 768, "depth": 12, "num_heads": 12},
    "large": {"embed_dim": 1024, "depth": 24, "num_heads": 16},
}
"""timm's plain ViTs (Dosovitskiy et al. 2021, table 1; Touvron et al. 2021 for tiny and small)."""

VIT_NAMES: frozenset[str] = frozenset(
    f"vit_{size}_patch{patch}_{img}"
    for size, variants in {
        "tiny": ("16_224", "16_384"),
        "small": ("8_224", "16_224", "16_384", "32_224", "32_384"),
        "base": ("8_224", "16_224", "16_384", "32_224", "32_384"),
        "large": ("14_224", "16_224", "16_384", "32_224", "32_384"),
    }.items()
    for patch, img in (variant.split("_") for variant in variants)
)

DISTILBERT: dict[str, Any] = {
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

AST: dict[str, Any] = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "patch_size": 16,
    "qkv_bias": True,
    "frequency_stride": 10,
    "time_stride": 10,
    "max_length": 1024,
    "num_mel_bins": 128,
}
"""transformers' defaults (Gong et al. 2021)."""

ALIASES: dict[str, str] = {"hidden_size": "dim", "num_attention_heads": "n_heads", "num_hidden_layers": "n_layers"}
"""Other names that transformers takes for DistilBERT's settings."""

HARMLESS: frozenset[str] = frozenset(
    {"initializer_range", "layer_norm_eps", "pad_token_id", "eos_token_id", "bos_token_id"}
)
"""Overrides that no count depends on."""

HUB: dict[str, dict[str, Any]] = {
    "distilbert-base-uncased": {"model_type": "distilbert"},
    "distilbert/distilbert-base-uncased": {"model_type": "distilbert"},
    "distilbert-base-cased": {"model_type": "distilbert", "vocab_size": 28996},
    "distilbert/distilbert-base-cased": {"model_type": "distilbert", "vocab_size": 28996},
    "MIT/ast-finetuned-audioset-10-10-0.4593": {"model_type": "audio-spectrogram-transformer"},
    "bookbot/distil-ast-audioset": {"model_type": "audio-spectrogram-transformer", "num_hidden_layers": 6},
}
"""Hub ids of pretrained weights -> their config, where it differs from the defaults."""

MODEL_TYPES: dict[str, str] = {"distilbert": "distilbert", "ast": "audio-spectrogram-transformer"}


def tabled(encoder: EncoderSpec) -> Architecture | None:
    """Describes an encoder by formulas.

    Args:
        encoder: The encoder; of `weights` in a local folder only the config.json is read.

    Returns:
        Its architecture; None if it is not in the table, or is wrong in a way that building it would tell.
    """
    readers: dict[str, Callable[[EncoderSpec], Architecture | None]] = {
        "vit": _vit,
        "distilbert": _distilbert,
        "ast": _ast,
    }
    return readers[encoder.family](encoder)


def stored_config(weights: str | None) -> dict[str, Any] | None:
    """Gives what the weights' own config says: {} without weights or for a single file, None where it is not known.

    Args:
        weights: A folder with a config.json, a file, a hub id, or None.
    """
    if not weights:
        return {}
    place = Path(weights).expanduser()
    if place.is_file():
        return {}
    if weights in HUB and not place.exists():
        return dict(HUB[weights])
    try:
        values = json.loads((place / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return values if isinstance(values, dict) else None


def _settings(encoder: EncoderSpec, defaults: Mapping[str, Any]) -> dict[str, Any] | None:
    """Gives a transformers encoder's settings in force: defaults, the weights' own, overrides; None if unknown."""
    stored = stored_config(encoder.weights)
    if stored is None or (stored and stored.get("model_type") != MODEL_TYPES[encoder.family]):
        return None
    aliases = ALIASES if encoder.family == "distilbert" else {}
    overrides = {aliases.get(key, key): value for key, value in encoder.config.items()}
    if any(key not in defaults and key not in HARMLESS for key in overrides):
        return None
    found = {aliases.get(key, key): value for key, value in stored.items()} | overrides
    settings = {key: found.get(key, default) for key, default in defaults.items()}
    return settings if _alike(settings, defaults) else None


def _alike(settings: Mapping[str, Any], defaults: Mapping[str, Any]) -> bool:
    """Says whether all settings have their default's type, and sizes are above 0."""

    def good(value: Any, default: Any) -> bool:
        if isinstance(default, bool | str):
            return isinstance(value, type(default))
        if isinstance(default, float):
            return isinstance(value, int | float) and value >= 0
        return isinstance(value, int) and value > 0

    return all(good(settings[key], default) for key, default in defaults.items())


def _pair(value: Any) -> tuple[int, int] | None:
    """Reads a size given once or as (height, width)."""
    pair = (value, value) if isinstance(value, int) else tuple(value) if isinstance(value, list | tuple) else ()
    return (pair[0], pair[1]) if len(pair) == 2 and all(isinstance(size, int) and size > 0 for size in pair) else None


# --- ViT (timm) ------------------------------------------------------------------------------------------------------


def _vit(encoder: EncoderSpec) -> Architecture | None:
    arch = encoder.arch or ""
    match = re.fullmatch(r"vit_([a-z]+)_patch(\d+)_(\d+)", arch)
    stored = stored_config(encoder.weights)
    if arch not in VIT_NAMES or match is None or stored is None:
        return None
    if stored and str(stored.get("architecture", "")).split(".")[0] != arch:
        return None
    defaults: dict[str, Any] = {
        **VIT_SIZES[match[1]],
        "patch_size": int(match[2]),
        "img_size": int(match[3]),
        "mlp_ratio": 4.0,
        "in_chans": 3,
        "qkv_bias": True,
        "num_classes": 0,
        "global_pool": "token",
    }
    size = (stored.get("pretrained_cfg") or {}).get("input_size")
    found = ({"img_size": size[-1]} if size else {}) | (stored.get("model_args") or {})
    found |= {"num_classes": 0, "global_pool": "token"} | encoder.config
    c = defaults | found
    if set(found) - set(defaults) or c["num_classes"] != 0 or c["global_pool"] != "token":
        return None
    image, patch = _pair(c.pop("img_size")), _pair(c.pop("patch_size"))
    if image is None or patch is None or not _alike(c, {key: defaults[key] for key in c if key != "num_classes"}):
        return None
    patches = (image[0] // patch[0]) * (image[1] // patch[1])
    if not patches or image[0] != image[1] or c["embed_dim"] % c["num_heads"]:
        return None
    d, fan_in, hidden = c["embed_dim"], c["in_chans"] * patch[0] * patch[1], int(c["embed_dim"] * c["mlp_ratio"])
    tensors = {
        **norm("norm1", d),
        **linear("attn.qkv", d, 3 * d, bias=c["qkv_bias"]),
        **linear("attn.proj", d, d),
        **norm("norm2", d),
        **linear("mlp.fc1", d, hidden),
        **linear("mlp.fc2", hidden, d),
    }
    stem = {
        "cls_token": TensorSpec((1, 1, d)),
        "pos_embed": TensorSpec((1, patches + 1, d)),
        "patch_embed.proj.weight": TensorSpec((d, c["in_chans"], *patch)),
        "patch_embed.proj.bias": TensorSpec((d,)),
    }
    return _encoder(
        arch,
        depth=c["depth"],
        tokens=patches + 1,
        stem=Unit(stem, _patches_cost(patches, fan_in=fan_in, width=d, pixels=c["in_chans"] * image[0] * image[1])),
        block_unit=block(BlockShape(width=d, feed_forward=hidden, heads=c["num_heads"]), tensors=tensors),
        width=d,
        final_norm=True,
    )


def _patches_cost(patches: int, *, fan_in: int, width: int, pixels: int) -> UnitCost:
    """Cost of a convolution that makes patches: its input is the batch, which needs no gradient and is not counted."""
    flops = Count(constant=2 * patches * fan_in * width)
    return UnitCost(forward=flops, backward=flops, copies=Count(constant=pixels), weight_copies=fan_in * width)


def _encoder(
    name: str, *, depth: int, tokens: int, stem: Unit, block_unit: Unit, width: int, final_norm: bool
) -> Architecture:
    """Puts an encoder together; reading the feature keeps the last state, T D, for its gradient is one row of it."""
    units = {"stem": stem} | {f"blocks.{i}": block_unit for i in range(depth)}
    pooled = Count(linear=width)
    if final_norm:
        row = UnitCost(saved_fp32=Count(constant=width + 2))
        units["norm"] = Unit(
            norm("", width), UnitCost(saved_fp32=Count(linear=width + 2)), {"row": row, "absorbed": row}
        )
    return Architecture(
        name=name, depth=depth, width=width, tokens=tokens, units=units, pooled=pooled, pooled_row=Count(width)
    )


# --- DistilBERT and AST (transformers) -------------------------------------------------------------------------------


def _distilbert(encoder: EncoderSpec) -> Architecture | None:
    c = _settings(encoder, DISTILBERT)
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
    return _encoder(
        "distilbert",
        depth=c["n_layers"],
        tokens=encoder.max_tokens,
        # the sum of both embeddings, LayerNorm's statistics, the dropout's noise
        stem=Unit(stem, UnitCost(saved_fp32=Count(linear=d + 2 + (d if dropout else 0)))),
        block_unit=block(shape, tensors=tensors),
        width=d,
        final_norm=False,
    )


def _ast(encoder: EncoderSpec) -> Architecture | None:
    c = _settings(encoder, AST)
    if c is None or c["hidden_act"] != "gelu" or c["hidden_size"] % c["num_attention_heads"]:
        return None
    d, hidden, patch, bias = c["hidden_size"], c["intermediate_size"], c["patch_size"], c["qkv_bias"]
    rows = (c["num_mel_bins"] - patch) // c["frequency_stride"] + 1
    columns = (c["max_length"] - patch) // c["time_stride"] + 1
    if rows < 1 or columns < 1:
        return None
    patches = rows * columns
    tensors = {
        **linear("attention.q_proj", d, d, bias=bias),
        **linear("attention.k_proj", d, d, bias=bias),
        **linear("attention.v_proj", d, d, bias=bias),
        **linear("attention.o_proj", d, d),
        **norm("layernorm_before", d),
        **norm("layernorm_after", d),
        **linear("mlp.fc1", d, hidden),
        **linear("mlp.fc2", hidden, d),
    }
    stem = {
        "cls_token": TensorSpec((1, 1, d)),
        "distillation_token": TensorSpec((1, 1, d)),
        "position_embeddings": TensorSpec((1, patches + 2, d)),
        "patch_embeddings.projection.weight": TensorSpec((d, 1, patch, patch)),
        "patch_embeddings.projection.bias": TensorSpec((d,)),
    }
    dropout = c["hidden_dropout_prob"] > 0
    shape = BlockShape(
        width=d,
        feed_forward=hidden,
        heads=c["num_attention_heads"],
        dropouts=2 * int(dropout),
        attention_dropout=c["attention_probs_dropout_prob"] > 0,
    )
    cost = _patches_cost(patches, fan_in=patch * patch, width=d, pixels=c["num_mel_bins"] * c["max_length"])
    noise = Count(linear=d if dropout else 0)
    return _encoder(
        "ast",
        depth=c["num_hidden_layers"],
        tokens=patches + 2,
        stem=Unit(stem, replace(cost, saved_fp32=noise)),
        block_unit=block(shape, tensors=tensors),
        width=d,
        final_norm=True,
    )
