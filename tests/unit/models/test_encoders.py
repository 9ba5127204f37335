"""A cut encoder is the library's model: bit for bit, wherever it is cut."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lwfed.catalog.encoder import AUDIOSET, HALF
from lwfed.models.build import initial_tensors, input_settings, load, skeleton
from lwfed.models.families import family_of
from lwfed.plan.units import units_of
from lwfed.spec.model import EncoderSpec
from lwfed.types.errors import SpecError
from tests.unit.models import small

SPECS = {"image": small.vit(), "text": small.distilbert(), "audio": small.ast()}


def _library(encoder: EncoderSpec) -> Any:
    if encoder.family == "vit":
        import timm

        return timm.create_model(encoder.arch, num_classes=0, **encoder.config)
    from transformers import ASTConfig, ASTModel, DistilBertConfig, DistilBertModel

    if encoder.family == "distilbert":
        return DistilBertModel(DistilBertConfig(**encoder.config))
    return ASTModel(ASTConfig(**encoder.config))


def _features(encoder: EncoderSpec, model: Any, inputs: Any) -> torch.Tensor:
    if encoder.family == "vit":
        return model(inputs)
    if encoder.family == "distilbert":
        return model(inputs["ids"], attention_mask=inputs["mask"].long()).last_hidden_state[:, 0]
    return model(inputs).last_hidden_state[:, 0]


@pytest.mark.parametrize("modality", SPECS)
def test_split_is_the_library_model_bit_for_bit(modality: str) -> None:
    encoder = SPECS[modality]
    with torch.random.fork_rng():
        torch.manual_seed(1)
        library = _library(encoder).eval()
    ours = family_of(encoder).build(encoder, depth=None).eval()
    names = {family_of(encoder).PREFIXES.to_library(name): name for name in ours.state_dict()}
    assert set(names) == set(library.state_dict())  # every tensor of the library is one of ours, and no other
    ours.load_state_dict({names[name]: tensor for name, tensor in library.state_dict().items()})
    batch = small.inputs()[modality]
    with torch.no_grad():
        expected = _features(encoder, library, batch)
        whole = len(ours.blocks)
        for cut in range(whole + 1):
            state = ours.advance(ours.embed(batch), start=0, stop=cut)
            assert torch.equal(ours.pool(ours.advance(state, start=cut, stop=whole)), expected)


def test_text_without_padding_is_the_library_model() -> None:
    encoder = SPECS["text"]
    library = _library(encoder).eval()
    ours = family_of(encoder).build(encoder, depth=None).eval()
    state = library.state_dict()
    ours.load_state_dict(
        {name: state[family_of(SPECS["text"]).PREFIXES.to_library(name)] for name in ours.state_dict()}
    )
    batch = small.inputs()["text"]
    batch = {"ids": batch["ids"][1:], "mask": batch["mask"][1:]}
    with torch.no_grad():
        expected = _features(encoder, library, batch)
        found = ours.pool(ours.advance(ours.embed(batch), start=0, stop=len(ours.blocks)))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)  # the library drops a mask that hides nothing


def test_padding_does_not_change_a_feature() -> None:
    model = small.contrastive()
    depth = {"image": 1, "text": 3}
    module = load(
        skeleton(model, depth=depth, num_classes=None),
        initial_tensors(model, units=units_of(model, depth), depth=depth, num_classes=None, seed="0"),
    ).eval()
    short = {"ids": torch.tensor([[5, 6, 7]]), "mask": torch.ones(1, 3, dtype=torch.bool)}
    long = {"ids": torch.tensor([[5, 6, 7, 9, 0]]), "mask": torch.tensor([[True, True, True, False, False]])}
    torch.testing.assert_close(module.project("text", short), module.project("text", long), rtol=0, atol=1e-5)


def test_whole_depth_and_input_settings() -> None:
    assert [small.whole_depth(encoder) for encoder in SPECS.values()] == [4, 3, 3]
    assert small.whole_depth(EncoderSpec(family="vit", arch="vit_tiny_patch16_224")) == 12
    assert input_settings(SPECS["image"]) == {"image_size": 32, "normalise": HALF}
    assert input_settings(SPECS["text"]) == {"max_tokens": 12, "tokenizer": None, "vocab_size": 60}
    assert input_settings(SPECS["audio"]) == {"num_mel_bins": 16, "max_length": 40, "normalise": AUDIOSET}


@pytest.mark.parametrize(
    ("encoder", "words"),
    [
        (small.vit(arch="vit_tiny_patch16_225"), "vit_tiny_patch16_224"),
        (small.vit(config={"embed_dimm": 4}), "embed_dimm"),
        (small.vit(config={**small.VIT, "num_heads": 5}), "timm cannot build"),
        (small.vit(config={"global_pool": "avg"}), "global_pool"),
        (small.vit(arch="resnet18", config={}), "resnet18"),
        (small.distilbert(config={"n_layer": 3}), "n_layers"),
        (small.distilbert(config={**small.DISTILBERT, "n_heads": 5}), "n_heads"),
        (small.distilbert(max_tokens=17), "max_position_embeddings"),
        (small.ast(config={"hidden_sise": 3}), "hidden_size"),
        (small.ast(config={**small.AST, "max_length": 8}), "max_length"),
    ],
)
def test_a_wrong_architecture_is_named_with_its_remedy(encoder: EncoderSpec, words: str) -> None:
    with pytest.raises(SpecError, match=words), torch.device("meta"):
        family_of(encoder).build(encoder, depth=None)
