"""ViT (timm): its settings, formulas and usage; see `lwfed.models.encoders.vit`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from lwfed.catalog.blocks import BlockShape, block, linear, norm, patches_cost, transformer
from lwfed.catalog.costs import Architecture, Unit
from lwfed.catalog.encoder import HALF, EncoderDescription, EncoderSettings, Input
from lwfed.catalog.stored import are_valid, stored_config
from lwfed.catalog.timm_models import timm_settings, timm_usage
from lwfed.types.tensors import TensorSpec

SIZES: dict[str, dict[str, int]] = {
    "tiny": {"embed_dim": 192, "depth": 12, "num_heads": 3},
    "small": {"embed_dim": 384, "depth": 12, "num_heads": 6},
    "base": {"embed_dim": 768, "depth": 12, "num_heads": 12},
    "large": {"embed_dim": 1024, "depth": 24, "num_heads": 16},
}
"""timm's plain ViTs (Dosovitskiy et al. 2021, table 1; Touvron et al. 2021 for tiny and small)."""

NAMES: frozenset[str] = frozenset(
    f"vit_{size}_patch{patch}_{img}"
    for size, variants in {
        "tiny": ("16_224", "16_384"),
        "small": ("8_224", "16_224", "16_384", "32_224", "32_384"),
        "base": ("8_224", "16_224", "16_384", "32_224", "32_384"),
        "large": ("14_224", "16_224", "16_384", "32_224", "32_384"),
    }.items()
    for patch, img in (variant.split("_") for variant in variants)
)

TYPES: dict[str, Any] = {
    **dict.fromkeys(("img_size", "patch_size"), (1,)),
    **dict.fromkeys(("in_chans", "embed_dim", "depth", "num_heads"), 1),
    **dict.fromkeys(("num_classes", "reg_tokens"), 0),
    **dict.fromkeys(("qkv_bias", "qk_norm", "class_token", "pre_norm", "dynamic_img_size"), True),
    **{f"{key}_rate": 0.0 for key in ("drop", "pos_drop", "patch_drop", "proj_drop", "attn_drop", "drop_path")},
    "mlp_ratio": 4.0,
}
"""Setting -> a value of its type."""
LIMITS = {"in_chans": (3, 3)}
"""Pictures are read as RGB."""


def check(encoder: EncoderSettings) -> None:
    """Raises ValueError if `arch` is missing."""
    if not encoder.arch:
        raise ValueError("a vit needs `arch`, for example vit_tiny_patch16_224")


def inputs(settings: Mapping[str, Any]) -> Input:
    """Returns an image's pixels [C, H, W]."""
    size = settings["image_size"]
    return Input((settings.get("in_chans", 3), size, size))


def architecture(encoder: EncoderSettings) -> Architecture | None:
    """Returns the architecture of a plain ViT with a class token; see `EncoderDescription.architecture`."""
    arch = encoder.arch or ""
    match = re.fullmatch(r"vit_([a-z]+)_patch(\d+)_(\d+)", arch)
    stored = stored_config(encoder.weights, hub={})
    if arch not in NAMES or match is None or stored is None:
        return None
    if stored and str(stored.get("architecture", "")).split(".")[0] != arch:
        return None
    defaults: dict[str, Any] = {
        **SIZES[match[1]],
        "patch_size": int(match[2]),
        "img_size": int(match[3]),
        "mlp_ratio": 4.0,
        "in_chans": 3,
        "qkv_bias": True,
        "num_classes": 0,
        "global_pool": "token",
    }
    found = timm_settings(stored)
    if found is None:
        return None
    found |= {"num_classes": 0, "global_pool": "token"} | encoder.config
    c = defaults | found
    if set(found) - set(defaults) or c["num_classes"] != 0 or c["global_pool"] != "token":
        return None
    image, patch = _pair(c.pop("img_size")), _pair(c.pop("patch_size"))
    if image is None or patch is None or not are_valid(c, {key: defaults[key] for key in c if key != "num_classes"}):
        return None
    patches = (image[0] // patch[0]) * (image[1] // patch[1])
    if not patches or c["in_chans"] != 3 or image[0] != image[1] or c["embed_dim"] % c["num_heads"]:
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
    return transformer(
        arch,
        depth=c["depth"],
        tokens=patches + 1,
        stem=Unit(stem, patches_cost(patches, fan_in=fan_in, width=d, pixels=c["in_chans"] * image[0] * image[1])),
        block_unit=block(BlockShape(width=d, feed_forward=hidden, heads=c["num_heads"]), tensors=tensors),
        width=d,
        final_norm=True,
    )


def _pair(value: Any) -> tuple[int, int] | None:
    """Reads a size given as one number or as (height, width)."""
    pair = (value, value) if isinstance(value, int) else tuple(value) if isinstance(value, list | tuple) else ()
    return (pair[0], pair[1]) if len(pair) == 2 and all(isinstance(size, int) and size > 0 for size in pair) else None


DESCRIPTION = EncoderDescription(
    modality="image",
    final_norm=True,
    feature_token=True,
    inputs=inputs,
    normalise=HALF,
    check=check,
    architecture=architecture,
    types=TYPES,
    limits=LIMITS,
    usage=timm_usage("vit", what="timm ViT"),
)
