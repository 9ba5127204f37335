"""Canonical and library names are one to one."""

from __future__ import annotations

import pytest

from lwfed.models.names import to_canonical, to_library


@pytest.mark.parametrize(
    ("family", "canonical", "library"),
    [
        ("vit", "stem.pos_embed", "pos_embed"),
        ("vit", "blocks.11.mlp.fc1.bias", "blocks.11.mlp.fc1.bias"),
        ("vit", "norm.weight", "norm.weight"),
        ("distilbert", "stem.LayerNorm.weight", "embeddings.LayerNorm.weight"),
        ("distilbert", "blocks.0.attention.q_lin.weight", "transformer.layer.0.attention.q_lin.weight"),
        ("ast", "stem.cls_token", "embeddings.cls_token"),
        ("ast", "blocks.2.mlp.fc1.weight", "layers.2.mlp.fc1.weight"),
        ("ast", "norm.bias", "layernorm.bias"),
    ],
)
def test_there_and_back(family: str, canonical: str, library: str) -> None:
    assert to_library(canonical, family=family) == library
    assert to_canonical(library, family=family) == canonical


def test_foreign_names_are_refused() -> None:
    with pytest.raises(ValueError, match="no name"):
        to_library("projection.out.weight", family="vit")
    with pytest.raises(ValueError, match="no name"):
        to_library("norm.weight", family="distilbert")
    with pytest.raises(ValueError, match="no name"):
        to_canonical("classifier.weight", family="ast")
