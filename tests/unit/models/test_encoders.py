"""A cut encoder is the library's model: bit for bit, wherever it is cut."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError

from lwfed.catalog.encoder import AUDIOSET, HALF, IMAGENET, encoder_family
from lwfed.models.build import initial_tensors, input_settings, load, skeleton
from lwfed.models.families import family_of
from lwfed.plan.units import units_of
from lwfed.spec.model import EncoderSpec
from lwfed.types.errors import SpecError
from tests.unit.models import small

SPECS = {"image": small.vit(), "text": small.distilbert(), "audio": small.ast()}
TEXTS = ("distilbert", "bert", "mobilebert")
OF_LIBRARIES = [family for family in small.SMALL if family != "timeseries"]
"""Families that timm or transformers have."""


def _library(encoder: EncoderSpec) -> Any:
    import timm
    import transformers

    config = dict(encoder.config)
    if small.modality_of(encoder) == "image":
        if encoder.family == "resnet":
            del config["img_size"]
        return timm.create_model(encoder.arch, num_classes=0, **config)
    name = {"distilbert": "DistilBert", "bert": "Bert", "mobilebert": "MobileBert", "ast": "AST"}[encoder.family]
    pooler = {"add_pooling_layer": False} if encoder.family in ("bert", "mobilebert") else {}
    return getattr(transformers, f"{name}Model")(getattr(transformers, f"{name}Config")(**config), **pooler)


def _features(encoder: EncoderSpec, model: Any, inputs: Any) -> torch.Tensor:
    if small.modality_of(encoder) == "image":
        return model(inputs)
    if small.modality_of(encoder) == "text":
        return model(inputs["ids"], attention_mask=inputs["mask"].long()).last_hidden_state[:, 0]
    return model(inputs).last_hidden_state[:, 0]


@pytest.mark.parametrize("family", OF_LIBRARIES)
def test_split_is_the_library_model_bit_for_bit(family: str) -> None:
    encoder = small.SMALL[family]()
    modality = small.modality_of(encoder)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        library = _library(encoder)
        if modality == "image":
            library(small.inputs()["image"])  # BatchNorm's statistics are no longer 0 and 1
        library.eval()
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
            cached = state._replace(tokens=state.tokens.contiguous())
            for one in (state, cached):
                assert torch.equal(ours.pool(ours.advance(one, start=cut, stop=whole)), expected)


@pytest.mark.parametrize("family", TEXTS)
def test_text_without_padding_is_the_library_model(family: str) -> None:
    encoder = small.SMALL[family]()
    library = _library(encoder).eval()
    ours = family_of(encoder).build(encoder, depth=None).eval()
    state = library.state_dict()
    ours.load_state_dict({name: state[family_of(encoder).PREFIXES.to_library(name)] for name in ours.state_dict()})
    batch = small.inputs()["text"]
    batch = {"ids": batch["ids"][1:], "mask": batch["mask"][1:]}
    with torch.no_grad():
        expected = _features(encoder, library, batch)
        found = ours.pool(ours.advance(ours.embed(batch), start=0, stop=len(ours.blocks)))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)  # the library drops a mask that hides nothing


@pytest.mark.parametrize("family", TEXTS)
def test_padding_does_not_change_a_feature(family: str) -> None:
    model = small.contrastive(image=small.vit(), text=small.SMALL[family]())
    depth = {"image": 1, "text": 3}
    module = load(
        skeleton(model, depth=depth, num_classes=None),
        initial_tensors(model, units=units_of(model, depth), depth=depth, num_classes=None, seed="0"),
    ).eval()
    short = {"ids": torch.tensor([[5, 6, 7]]), "mask": torch.ones(1, 3, dtype=torch.bool)}
    long = {"ids": torch.tensor([[5, 6, 7, 9, 0]]), "mask": torch.tensor([[True, True, True, False, False]])}
    torch.testing.assert_close(module.project("text", short), module.project("text", long), rtol=0, atol=1e-5)


def test_whole_depth_and_input_settings() -> None:
    assert [small.whole_depth(small.SMALL[family]()) for family in small.SMALL] == [4, 4, 3, 3, 3, 3, 3]
    assert small.whole_depth(EncoderSpec(family="vit", arch="vit_tiny_patch16_224")) == 12
    assert small.whole_depth(EncoderSpec(family="mobilebert")) == 24
    assert small.whole_depth(EncoderSpec(family="ast")) == 12, (
        "the whole AST; the distilled one has `num_hidden_layers: 6`"
    )
    assert input_settings(small.resnet()) == {"image_size": 32, "normalise": IMAGENET}
    assert input_settings(EncoderSpec(family="resnet", arch="resnet34"))["image_size"] == 224
    assert input_settings(small.mobilebert()) == input_settings(SPECS["text"])
    assert input_settings(SPECS["image"]) == {"image_size": 32, "normalise": HALF}
    assert input_settings(SPECS["text"]) == {"max_tokens": 12, "tokenizer": None, "vocab_size": 60}
    assert input_settings(SPECS["audio"]) == {"num_mel_bins": 16, "max_length": 40, "normalise": AUDIOSET}


@pytest.mark.parametrize(
    "fields",
    [
        {"arch": None},
        {"arch": "resnet18d"},
        {"arch": "vit_tiny_patch16_224"},
        {"config": {"layers": 2}},
        {"config": {"layers": [2, 2, 2]}},
        {"config": {"layers": [1, 1, 1, 1]}},
        {"config": {"layers": [2, 0, 1, 1]}},
        {"config": {"layers": [2, 1, -1, 0]}},
        {"config": {"layers": [2, 2, 2, 2.5]}},
        {"config": {"channels": [8, 8, 8, 0]}},
        {"config": {"img_size": [32, 32]}},
        {"config": {"img_size": 0}},
        {"config": {"in_chans": 1}},
        {"config": {"drop_path_rate": 1.0}},
    ],
)
def test_a_wrong_resnet_is_refused_before_it_is_built(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(fields.get("config", {"arch": 0})))):
        small.resnet(**fields)


def test_stages_without_residual_blocks_are_no_blocks() -> None:
    encoder = small.resnet(config={**small.RESNET, "layers": [2, 1, 0, 0]})
    assert small.whole_depth(encoder) == 2
    assert list(encoder_family("resnet").widths(encoder)) == [64, 8, 12]
    assert list(encoder_family("resnet").widths(EncoderSpec(family="resnet", arch="resnet50.a1_in1k"))) == [
        64, 256, 512, 1024, 2048,
    ]  # fmt: skip


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
        (small.resnet(config={"layerz": 1}), "layerz"),
        (small.resnet(config={"block_reduce_first": 0}), "timm cannot build"),
        (small.resnet(config={"num_classes": 10}), "num_classes"),
        (small.bert(config={"is_decoder": True}), "is_decoder"),
        (small.bert(max_tokens=17), "max_position_embeddings"),
        (small.mobilebert(config={**small.MOBILEBERT, "normalization_type": "none"}), "none"),
        (small.mobilebert(config={"classifier_activation": False}), "classifier_activation"),
        (small.ast(config={"hidden_sise": 3}), "hidden_size"),
        (small.ast(config={**small.AST, "max_length": 8}), "max_length"),
    ],
)
def test_a_wrong_architecture_is_named_with_its_remedy(encoder: EncoderSpec, words: str) -> None:
    with pytest.raises(SpecError, match=words), torch.device("meta"):
        family_of(encoder).build(encoder, depth=None)
