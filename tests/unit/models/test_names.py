"""Canonical and library names are one to one."""

from __future__ import annotations

import pytest

from lwfed.models.families import family_of
from lwfed.models.protocol import Prefixes
from tests.unit.models import small


def prefixes(family: str) -> Prefixes:
    return family_of(small.SMALL[family]()).PREFIXES


@pytest.mark.parametrize(
    ("family", "canonical", "library"),
    [
        ("vit", "stem.pos_embed", "pos_embed"),
        ("vit", "blocks.11.mlp.fc1.bias", "blocks.11.mlp.fc1.bias"),
        ("vit", "norm.weight", "norm.weight"),
        ("distilbert", "stem.LayerNorm.weight", "embeddings.LayerNorm.weight"),
        ("distilbert", "blocks.0.attention.q_lin.weight", "transformer.layer.0.attention.q_lin.weight"),
        ("resnet", "stem.conv1.weight", "conv1.weight"),
        ("resnet", "stem.bn1.running_mean", "bn1.running_mean"),
        ("resnet", "blocks.0.1.conv2.weight", "layer1.1.conv2.weight"),
        ("resnet", "blocks.3.0.downsample.1.bias", "layer4.0.downsample.1.bias"),
        ("bert", "blocks.11.output.dense.bias", "encoder.layer.11.output.dense.bias"),
        ("mobilebert", "blocks.23.ffn.2.output.dense.bias", "encoder.layer.23.ffn.2.output.dense.bias"),
        ("ast", "stem.cls_token", "embeddings.cls_token"),
        ("ast", "blocks.2.mlp.fc1.weight", "layers.2.mlp.fc1.weight"),
        ("ast", "norm.bias", "layernorm.bias"),
    ],
)
def test_there_and_back(family: str, canonical: str, library: str) -> None:
    assert prefixes(family).to_library(canonical) == library
    assert prefixes(family).to_canonical(library) == canonical


def test_foreign_names_are_refused() -> None:
    with pytest.raises(ValueError, match="no tensor"):
        prefixes("vit").to_library("projection.out.weight")
    with pytest.raises(ValueError, match="no tensor"):
        prefixes("distilbert").to_library("norm.weight")
    with pytest.raises(ValueError, match="no tensor"):
        prefixes("resnet").to_library("first.weight")
    with pytest.raises(ValueError, match="no tensor"):
        prefixes("ast").to_canonical("classifier.weight")
