"""Small models for tests."""

from __future__ import annotations

from typing import Any

import torch

from lwfed.models.families import family_of
from lwfed.spec.model import EncoderSpec, ModelSpec

VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 4, "num_heads": 3}
DISTILBERT = {"dim": 24, "n_layers": 3, "n_heads": 3, "hidden_dim": 48, "vocab_size": 60, "max_position_embeddings": 16}
AST = {
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "intermediate_size": 48,
    "max_length": 40,
    "num_mel_bins": 16,
}
TIMESERIES = {"length": 40, "channels": [16, 24], "depth": 3}
PROJECTION = {"hidden": 32, "out": 8}


def vit(**fields: Any) -> EncoderSpec:
    return EncoderSpec(**{"family": "vit", "arch": "vit_tiny_patch16_224", "config": VIT, **fields})


def distilbert(**fields: Any) -> EncoderSpec:
    return EncoderSpec(**{"family": "distilbert", "config": DISTILBERT, "max_tokens": 12, **fields})


def ast(**fields: Any) -> EncoderSpec:
    return EncoderSpec(**{"family": "ast", "config": AST, **fields})


def timeseries(**fields: Any) -> EncoderSpec:
    return EncoderSpec(**{"family": "timeseries", "config": TIMESERIES, **fields})


def whole_depth(encoder: EncoderSpec) -> int:
    """Returns the number of blocks of a whole encoder."""
    with torch.device("meta"):
        return len(family_of(encoder).build(encoder, depth=None).blocks)


def contrastive(**encoders: EncoderSpec) -> ModelSpec:
    return ModelSpec.model_validate(
        {"encoders": encoders or {"image": vit(), "text": distilbert()}, "projection": PROJECTION}
    )


def supervised() -> ModelSpec:
    return ModelSpec.model_validate(
        {
            "encoders": {"image": vit(), "audio": ast()},
            "projection": PROJECTION,
            "objective": {"kind": "supervised", "hidden": 16},
        }
    )


def inputs(batch: int = 5, *, seed: int = 0) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    mask = torch.ones(batch, 9, dtype=torch.bool)
    mask[0, 4:] = False
    return {
        "image": torch.randn(batch, 3, 32, 32, generator=generator),
        "text": {"ids": torch.randint(1, 60, (batch, 9), generator=generator) * mask, "mask": mask},
        "audio": torch.randn(batch, 40, 16, generator=generator),
    }
