"""Pretrained weights: what a library saved is what an encoder starts from; what is wrong is named with its remedy."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from lwfed.catalog.encoder import HALF
from lwfed.cost.architectures import by_formulas
from lwfed.models.build import initial_tensors, input_settings, skeleton, tensor_specs
from lwfed.models.families import family_of
from lwfed.models.identity import weights_version
from lwfed.models.pretrained import resolved
from lwfed.models.weights import is_hub_id
from lwfed.params import spec_of
from lwfed.plan.units import units_of
from lwfed.spec.model import EncoderSpec, ModelSpec
from lwfed.types.errors import DataError, LwfedError, SpecError, UnreachableError
from tests.unit.models import small

HEADS = ("image.adapter.", "image.projection.", "text.projection.")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Weights as timm and transformers save them, with heads of other tasks."""
    import timm
    from timm.models import save_for_hf
    from transformers import (
        ASTConfig,
        ASTForAudioClassification,
        BertConfig,
        BertForMaskedLM,
        DistilBertConfig,
        DistilBertForMaskedLM,
        MobileBertConfig,
        MobileBertForPreTraining,
    )
    from transformers.utils import logging

    logging.disable_progress_bar()
    root = tmp_path_factory.mktemp("weights")
    with torch.random.fork_rng():
        torch.manual_seed(3)
        vit = timm.create_model("vit_tiny_patch16_224", num_classes=7, **small.VIT)
        text = DistilBertForMaskedLM(DistilBertConfig(**small.DISTILBERT))
        audio = ASTForAudioClassification(ASTConfig(**small.AST))
        resnet_args = {key: value for key, value in small.RESNET.items() if key != "img_size"}
        resnet = timm.create_model("resnet18", num_classes=7, **resnet_args)
        resnet(torch.randn(4, 3, 32, 32))  # statistics of BatchNorm
        bert = BertForMaskedLM(BertConfig(**small.BERT))
        mobilebert = MobileBertForPreTraining(MobileBertConfig(**small.MOBILEBERT))
    save_for_hf(resnet, root / "resnet", model_args=resnet_args, safe_serialization=True)
    bert.save_pretrained(root / "bert")
    mobilebert.save_pretrained(root / "mobilebert")
    save_for_hf(vit, root / "image", model_args=small.VIT, safe_serialization=True)
    text.save_pretrained(root / "text")
    audio.save_pretrained(root / "audio")  # in transformers' older names: encoder.layer.0.attention.attention.query
    torch.save(vit.state_dict(), root / "image" / "pytorch_model.bin")
    save_file(vit.state_dict(), root / "alone.safetensors")
    return {path.name: path for path in root.iterdir()}


def _spec(kind: Any, folder: Path, **fields: Any) -> EncoderSpec:
    return kind(weights=str(folder), **{"config": {}, **fields})


def _model(folders: dict[str, Path]) -> ModelSpec:
    return small.contrastive(
        image=_spec(small.vit, folders["image"]),
        text=_spec(small.distilbert, folders["text"], tokenizer="bytes"),
        audio=_spec(small.ast, folders["audio"]),
    )


def test_every_unit_starts_from_the_saved_tensors(folders: dict[str, Path]) -> None:
    model = _model(folders)
    depth = {modality: small.whole_depth(encoder) for modality, encoder in model.encoders.items()}
    assert depth == {"image": 4, "text": 3, "audio": 3}
    units = units_of(model, depth)
    tensors = initial_tensors(model, units=units, depth=depth, num_classes=None, seed="0")
    specs = tensor_specs(skeleton(model, depth=depth, num_classes=None))
    assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == {n: s.shape for n, s in specs.items()}
    saved = {name: load_file(folders[name] / "model.safetensors") for name in ("image", "text", "audio")}
    pairs = {
        "image.stem.pos_embed": saved["image"]["pos_embed"],
        "image.blocks.3.mlp.fc2.weight": saved["image"]["blocks.3.mlp.fc2.weight"],
        "image.norm.bias": saved["image"]["norm.bias"],
        "text.stem.word_embeddings.weight": saved["text"]["distilbert.embeddings.word_embeddings.weight"],
        "text.blocks.2.ffn.lin1.bias": saved["text"]["distilbert.transformer.layer.2.ffn.lin1.bias"],
        "audio.blocks.1.attention.q_proj.weight": saved["audio"][
            "audio_spectrogram_transformer.encoder.layer.1.attention.attention.query.weight"
        ],
    }
    for name, tensor in pairs.items():
        assert torch.equal(tensors[name], tensor)
    late = initial_tensors(model, units=["text.blocks.1"], depth={**depth, "text": 2}, num_classes=None, seed="9")
    assert late and all(torch.equal(tensor, tensors[name]) for name, tensor in late.items())


def test_a_fresh_norm_alone_is_not_from_the_weights(folders: dict[str, Path]) -> None:
    model = _model(folders)
    fresh = {m: e.model_copy(update={"fresh_norm": m != "text"}) for m, e in model.encoders.items()}
    depth = {modality: small.whole_depth(encoder) for modality, encoder in model.encoders.items()}
    units = units_of(model, depth)
    saved, tensors = (
        initial_tensors(each, units=units, depth=depth, num_classes=None, seed="0")
        for each in (model, model.model_copy(update={"encoders": fresh}))
    )
    norms = {f"{modality}.norm.{name}" for modality in ("image", "audio") for name in ("weight", "bias")}
    assert all(bool((tensors[name] == (1 if name.endswith("weight") else 0)).all()) for name in norms)
    assert all(torch.equal(tensors[name], saved[name]) for name in saved.keys() - norms)


def _others(folders: dict[str, Path], text: str) -> ModelSpec:
    return small.contrastive(
        image=_spec(small.resnet, folders["resnet"]),
        text=_spec(small.SMALL[text], folders[text], tokenizer="bytes"),
    )


@pytest.mark.parametrize("text", ["bert", "mobilebert"])
def test_every_unit_of_the_others_starts_from_the_saved_tensors(folders: dict[str, Path], text: str) -> None:
    """All of them, buffers included; BatchNorm's counters are integers, and adapters are drawn."""
    model = _others(folders, text)
    depth = {"image": 3, "text": 2}
    tensors = initial_tensors(model, units=units_of(model, depth), depth=depth, num_classes=None, seed="0")
    specs = tensor_specs(skeleton(model, depth=depth, num_classes=None))
    assert {name: spec_of(t, buffer=specs[name].buffer) for name, t in tensors.items()} == specs
    assert tensors["image.adapter.3.weight"].shape == (24, 16)
    for modality, folder, prefix in (("image", "resnet", ""), ("text", text, f"{text}.")):
        saved = load_file(folders[folder] / "model.safetensors")
        names = family_of(model.encoders[modality]).PREFIXES
        own = {n: t for n, t in tensors.items() if n.startswith(modality) and not n.startswith(HEADS)}
        for name, tensor in own.items():
            assert torch.equal(tensor, saved[prefix + names.to_library(name.removeprefix(f"{modality}."))]), name
    assert int(tensors["image.stem.bn1.num_batches_tracked"]) == 1


@pytest.mark.parametrize("layers", [2, [2, 1, 1], [2, 0, 1, 1], [2, 1, 1, "1"]])
def test_stored_sizes_that_fit_no_resnet_are_named(folders: dict[str, Path], tmp_path: Path, layers: Any) -> None:
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((folders["resnet"] / name).read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    config["model_args"]["layers"] = layers
    (tmp_path / "config.json").write_text(json.dumps(config))
    encoder = _spec(small.resnet, tmp_path)
    assert by_formulas(encoder) is None
    with pytest.raises(DataError, match="layers"):
        resolved(encoder)


def test_the_stored_sizes_are_those_of_the_formulas(folders: dict[str, Path]) -> None:
    stored = _spec(small.resnet, folders["resnet"], config={"img_size": 32})
    assert by_formulas(stored) == by_formulas(small.resnet())


def test_counters_of_batches_may_be_missing(folders: dict[str, Path], tmp_path: Path) -> None:
    saved = load_file(folders["resnet"] / "model.safetensors")
    save_file({n: t for n, t in saved.items() if not n.endswith("_tracked")}, tmp_path / "old.safetensors")
    model = small.contrastive(image=small.resnet(weights=str(tmp_path / "old.safetensors")), text=small.distilbert())
    depth = {"image": 1, "text": 1}
    tensors = initial_tensors(model, units=["image.stem"], depth=depth, num_classes=None, seed="0")
    assert int(tensors["image.stem.bn1.num_batches_tracked"]) == 0
    assert torch.equal(tensors["image.stem.bn1.running_var"], saved["bn1.running_var"])


@pytest.mark.parametrize("kind", ["distilled", "bert", "mobilebert"])
def test_resolved_needs_no_file_any_more(folders: dict[str, Path], kind: str) -> None:
    model = _model(folders) if kind == "distilled" else _others(folders, kind)
    for modality, encoder in model.encoders.items():
        plain = resolved(encoder)
        assert plain.weights is None
        small_model = model.model_copy(update={"encoders": {**model.encoders, modality: plain}})
        depth = dict.fromkeys(model.modalities, 1)
        assert tensor_specs(skeleton(small_model, depth=depth, num_classes=None)) == tensor_specs(
            skeleton(model, depth=depth, num_classes=None)
        )
        assert input_settings(plain) == input_settings(encoder)
        assert EncoderSpec.model_validate(plain.model_dump()) == plain
        assert units_of(small_model, depth) == units_of(model, depth)


def test_overrides_stand_above_the_folder_and_positions_are_resized(folders: dict[str, Path]) -> None:
    encoder = _spec(small.vit, folders["image"], config={"img_size": 48})
    model = small.contrastive(image=encoder, text=small.distilbert())
    assert input_settings(encoder) == {"image_size": 48, "normalise": HALF}
    tensors = initial_tensors(model, units=["image.stem"], depth={"image": 1, "text": 1}, num_classes=None, seed="0")
    assert tensors["image.stem.pos_embed"].shape == (1, 37, 24)


def test_a_file_alone_takes_the_architecture_from_the_spec(folders: dict[str, Path]) -> None:
    model = small.contrastive(image=small.vit(weights=str(folders["alone.safetensors"])), text=small.distilbert())
    tensors = initial_tensors(
        model, units=["image.blocks.0"], depth={"image": 1, "text": 1}, num_classes=None, seed="0"
    )
    saved = load_file(folders["alone.safetensors"])
    assert torch.equal(tensors["image.blocks.0.attn.qkv.weight"], saved["blocks.0.attn.qkv.weight"])


def test_version_is_of_the_content_and_not_of_the_place(folders: dict[str, Path], tmp_path: Path) -> None:
    copy = tmp_path / "elsewhere"
    copy.mkdir()
    for name in ("config.json", "model.safetensors"):
        (copy / name).write_bytes((folders["text"] / name).read_bytes())
    version = weights_version(_spec(small.distilbert, folders["text"]))
    assert version == weights_version(_spec(small.distilbert, copy)) and len(version) == 64
    (copy / "config.json").write_text(json.dumps({"model_type": "distilbert"}))
    assert version != weights_version(_spec(small.distilbert, copy))
    assert len(weights_version(small.vit(weights=str(folders["alone.safetensors"])))) == 64
    assert weights_version(small.vit()) == ""
    assert weights_version(small.distilbert(weights="owner/none-such")) == "owner/none-such"


def _start(encoder: EncoderSpec) -> None:
    modality = small.modality_of(encoder)
    others = {"image": small.vit(), "text": small.distilbert()}
    model = small.contrastive(**{**others, modality: encoder})
    initial_tensors(
        model,
        units=[f"{modality}.stem", *(["image.blocks.3"] if encoder.family == "resnet" else [])],
        depth={**dict.fromkeys(model.modalities, 1), "image": 4},
        num_classes=None,
        seed="0",
    )


def test_what_is_wrong_is_named(folders: dict[str, Path], tmp_path: Path) -> None:
    pickled, empty, torn = tmp_path / "pickled", tmp_path / "empty", tmp_path / "torn"
    for folder in (pickled, empty, torn):
        folder.mkdir()
        (folder / "config.json").write_bytes((folders["image"] / "config.json").read_bytes())
    (pickled / "pytorch_model.bin").write_bytes(b"\x80\x04")
    (torn / "model.safetensors").write_bytes((folders["image"] / "model.safetensors").read_bytes()[:999])
    bare = tmp_path / "bare"
    bare.mkdir()
    image, text = folders["image"], folders["text"]
    cases: list[tuple[EncoderSpec, type[LwfedError], str]] = [
        (_spec(small.vit, tmp_path / "absent"), DataError, "no weights at"),
        (_spec(small.vit, pickled), DataError, "save it as model.safetensors"),
        (small.vit(weights=str(pickled / "pytorch_model.bin")), DataError, "not a .safetensors"),
        (_spec(small.vit, empty), DataError, "no model.safetensors"),
        (_spec(small.vit, torn), DataError, "cannot read"),
        (_spec(small.vit, bare), DataError, "no config.json"),
        (_spec(small.vit, image, arch="vit_small_patch16_224"), SpecError, "arch: vit_tiny"),
        (_spec(small.vit, image, config={"embed_dim": 48}), DataError, "in the model"),
        (_spec(small.vit, text), DataError, "not timm's"),
        (_spec(small.resnet, image), SpecError, "vit_tiny_patch16_224"),
        (_spec(small.resnet, folders["resnet"], arch="resnet34"), SpecError, "arch: resnet18"),
        (_spec(small.resnet, folders["resnet"], config={"channels": [8, 12, 16, 32]}), DataError, "in the model"),
        (_spec(small.bert, text), DataError, "not a bert"),
        (_spec(small.mobilebert, folders["bert"]), DataError, "not a mobilebert"),
        (_spec(small.mobilebert, folders["mobilebert"], config={"num_hidden_layers": 4}), DataError, "lack"),
        (_spec(small.ast, text), DataError, "not a audio-spectrogram-transformer"),
        (_spec(small.distilbert, text, config={"n_layers": 4}), DataError, "lack"),
        (_spec(small.distilbert, text, config={"vocab_size": 70}), DataError, "do not fit"),
    ]
    for encoder, kind, words in cases:
        with pytest.raises(kind, match=words):
            _start(encoder)


def test_an_unreachable_hub_is_reported_at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    for offline in (True, False):
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
        monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
        started = time.monotonic()
        with pytest.raises(UnreachableError, match="copy the model's folder"):
            _start(small.distilbert(weights="owner/none-such", config={}))
        assert time.monotonic() - started < 8


def test_what_is_a_hub_id(folders: dict[str, Path]) -> None:
    assert is_hub_id("timm/vit_tiny_patch16_224.augreg_in21k") and is_hub_id("distilbert-base-uncased")
    for path in ("./weights", "/weights/vit", "~/weights", "a/b/c", "vit.safetensors", "x/model.bin"):
        assert not is_hub_id(path)
    assert not is_hub_id(str(folders["text"]))


def test_loading_is_quiet_and_leaves_the_generator_alone(
    folders: dict[str, Path], capfd: pytest.CaptureFixture[str]
) -> None:
    before = torch.get_rng_state()
    capfd.readouterr()
    _start(_spec(small.distilbert, folders["text"]))
    _start(_spec(small.vit, folders["image"]))
    assert capfd.readouterr() == ("", "")
    assert torch.equal(before, torch.get_rng_state())
