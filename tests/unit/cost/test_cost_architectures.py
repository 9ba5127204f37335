"""Laws: an architecture by formulas has the tensors of its module; a config that is not understood has no formulas."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from lwfed.catalog.costs import Architecture
from lwfed.catalog.encoder import encoder_family
from lwfed.catalog.encoders.vit import NAMES
from lwfed.cost.architectures import by_formulas
from lwfed.models.build import skeleton, tensor_specs
from lwfed.models.inspect import count
from lwfed.spec.model import EncoderSpec, ModelSpec
from lwfed.types.modalities import of_kind

SMALL_BERT = {"dim": 24, "n_layers": 2, "n_heads": 3, "hidden_dim": 40, "vocab_size": 30, "max_position_embeddings": 64}
SMALL_AST = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 40}
UNTABLED = ("reg_tokens", "init_values", "activation")
ENCODERS: dict[str, dict[str, Any]] = {
    "vit": {"family": "vit", "arch": "vit_tiny_patch16_224"},
    "vit-384": {"family": "vit", "arch": "vit_small_patch32_384"},
    "vit-small": {
        "family": "vit",
        "arch": "vit_base_patch16_224",
        "config": {"img_size": 40, "patch_size": 8, "embed_dim": 36, "depth": 2, "num_heads": 3, "mlp_ratio": 2.5},
    },
    "vit-no-bias": {
        "family": "vit",
        "arch": "vit_tiny_patch16_224",
        "config": {"qkv_bias": False, "depth": 1},
    },
    "distilbert": {"family": "distilbert"},
    "distilbert-small": {"family": "distilbert", "config": SMALL_BERT},
    "distilbert-no-dropout": {"family": "distilbert", "config": SMALL_BERT | {"dropout": 0, "attention_dropout": 0.0}},
    "distilbert-aliases": {"family": "distilbert", "config": {"hidden_size": 24, "num_hidden_layers": 1}},
    "ast": {"family": "ast"},
    "ast-small": {
        "family": "ast",
        "config": SMALL_AST | {"num_mel_bins": 40, "max_length": 70, "patch_size": 8, "time_stride": 6},
    },
    "ast-dropout": {
        "family": "ast",
        "config": SMALL_AST
        | {"max_length": 64, "qkv_bias": False, "hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1},
    },
    "timeseries": {"family": "timeseries"},
    "timeseries-small": {
        "family": "timeseries",
        "config": {"length": 75, "axes": 2, "kernel": 3, "channels": [6, 12], "depth": 2, "num_heads": 3},
    },
}


def known(values: dict[str, Any]) -> Architecture:
    architecture = by_formulas(EncoderSpec.model_validate(values))
    assert architecture is not None
    return architecture


@pytest.mark.parametrize("name", ENCODERS)
def test_the_tensors_are_the_module_s(name: str) -> None:
    encoder = EncoderSpec.model_validate(ENCODERS[name])
    architecture = known(ENCODERS[name])
    modality = of_kind(encoder_family(encoder.family).modality)[0]
    model = ModelSpec.model_validate({"encoders": {modality: encoder}, "objective": {"kind": "supervised"}})
    module = skeleton(model, depth={modality: architecture.depth}, num_classes=2)
    specs = tensor_specs(module)
    heads = ("prediction.", f"{modality}.projection.")
    assert architecture.tensors(modality) == {n: s for n, s in specs.items() if not n.startswith(heads)}
    assert architecture.width == module.encoder(modality).width


@pytest.mark.parametrize("name", sorted(NAMES))
def test_every_tabled_vit_is_timm_s(name: str) -> None:
    with torch.device("meta"):
        model = timm.create_model(name, num_classes=0)
    architecture = known({"family": "vit", "arch": name})
    assert architecture.depth == len(model.blocks)
    assert {
        n.removeprefix("image.").removeprefix("stem."): s.shape for n, s in architecture.tensors("image").items()
    } == {n: tuple(t.shape) for n, t in model.state_dict().items()}
    assert architecture.tokens == model.patch_embed.num_patches + 1


@pytest.mark.parametrize("name", sorted(ENCODERS))
def test_counting_on_the_meta_device_agrees_with_the_formulas(name: str) -> None:
    formulas = known(ENCODERS[name])
    counted = Architecture.from_values(json.loads(json.dumps(count(EncoderSpec.model_validate(ENCODERS[name])))))
    assert (counted.depth, counted.width, counted.tokens) == (formulas.depth, formulas.width, formulas.tokens)
    assert counted.units.keys() == formulas.units.keys()
    tokens = formulas.tokens
    assert counted.pooled.at(tokens) == formulas.pooled.at(tokens)
    assert counted.pooled_row.at(tokens) == formulas.pooled_row.at(tokens)
    for unit, formula in formulas.units.items():
        measured = counted.units[unit]
        assert measured.tensors == formula.tensors
        assert measured.variants.keys() == formula.variants.keys()
        for how in ("full", "row", "absorbed"):
            one, other = measured.cost_as(how), formula.cost_as(how)
            for what in ("forward", "backward", "input_gradient"):
                assert getattr(one, what).at(tokens) == getattr(other, what).at(tokens), (unit, how, what)
            for at_cut in (False, True):
                assert one.saved_bytes(tokens, at_cut=at_cut) == other.saved_bytes(tokens, at_cut=at_cut), (unit, how)


def test_a_block_that_absorbs_nothing_is_counted_as_it_is_computed() -> None:
    """timm's `qk_norm` leaves the row alone; a block of another kind is whole."""
    config = {"depth": 2, "img_size": 64, "patch_size": 16}
    arch = {"family": "vit", "arch": "vit_tiny_patch16_224"}
    normed = Architecture.from_values(count(EncoderSpec.model_validate(arch | {"config": config | {"qk_norm": True}})))
    block = normed.units["blocks.1"]
    assert block.variants["absorbed"] == block.variants["row"]
    assert block.variants["row"].forward.at(17) < 0.5 * block.cost.forward.at(17)
    parallel = Architecture.from_values(
        count(EncoderSpec.model_validate({"family": "vit", "arch": "vit_small_patch16_18x2_224", "config": config}))
    )
    for unit in ("blocks.1", "norm"):
        known = parallel.units[unit]
        for variant in known.variants.values():
            assert (variant.forward, variant.backward) == (known.cost.forward, known.cost.backward)
            assert variant.saved_bytes(17) == known.cost.saved_bytes(17)
    assert parallel.pooled_row == parallel.pooled
    assert normed.pooled_row.at(17) * 17 == normed.pooled.at(17)


def test_counted_texts_scale_with_their_length() -> None:
    formulas, counted = (
        known(ENCODERS["distilbert-small"]),
        count(EncoderSpec.model_validate(ENCODERS["distilbert-small"])),
    )
    cost = Architecture.from_values(counted).units["blocks.1"].cost
    for tokens in (3, 17, 60):
        assert cost.forward.at(tokens) == formulas.units["blocks.1"].cost.forward.at(tokens)
        assert cost.saved_bytes(tokens) == formulas.units["blocks.1"].cost.saved_bytes(tokens)
        for how, known_cost in formulas.units["blocks.1"].variants.items():
            found = Architecture.from_values(counted).units["blocks.1"].variants[how]
            assert found.backward.at(tokens) == known_cost.backward.at(tokens)
            assert found.saved_bytes(tokens) == known_cost.saved_bytes(tokens)


@pytest.mark.parametrize(
    "values",
    [
        {"family": "vit", "arch": "vit_tiny_patch16_224", "config": {"reg_tokens": 4}},
        {"family": "vit", "arch": "vit_tiny_patch16_224", "config": {"num_classes": 3}},
        {"family": "vit", "arch": "vit_tiny_patch16_224", "config": {"img_size": 8}},
        {"family": "vit", "arch": "vit_tiny_patch16_224", "config": {"img_size": [64, 32]}},
        {"family": "vit", "arch": "vit_tiny_patch15_224"},
        {"family": "vit", "arch": "deit3_small_patch16_224"},
        {"family": "distilbert", "config": {"activation": "relu"}},
        {"family": "distilbert", "config": {"colour": 3}},
        {"family": "distilbert", "config": {"dim": 50, "n_heads": 3}},
        {"family": "distilbert", "max_tokens": 600},
        {"family": "distilbert", "weights": "someone/some-model"},
        {"family": "ast", "config": {"hidden_act": "relu"}},
        {"family": "ast", "config": {"max_length": 4}},
        {"family": "ast", "config": {"patch_size": [8, 8]}},
    ],
)
def test_what_is_not_understood_is_not_tabled(values: dict[str, Any]) -> None:
    assert by_formulas(EncoderSpec.model_validate(values)) is None


@pytest.mark.parametrize(
    "values",
    [
        {"family": "vit", "arch": "vit_tiny_patch16_224", "config": {"reg_tokens": 4, "depth": 2, "init_values": 0.1}},
        {"family": "distilbert", "config": SMALL_BERT | {"activation": "relu"}},
    ],
)
def test_what_is_not_tabled_is_counted(values: dict[str, Any]) -> None:
    encoder = EncoderSpec.model_validate(values)
    assert by_formulas(encoder) is None
    counted = Architecture.from_values(count(encoder))
    near = known(values | {"config": {k: v for k, v in values["config"].items() if k not in UNTABLED}})
    tokens = counted.tokens
    for unit in near.units:
        assert counted.units[unit].cost.forward.at(tokens) == near.units[unit].cost.forward.at(tokens)
    extra = counted.units["blocks.0"].cost.saved_bytes(tokens) - near.units["blocks.0"].cost.saved_bytes(tokens)
    if encoder.family == "vit":  # two layer scales a block: their inputs are kept
        assert (tokens, extra) == (201, 2 * 4 * 201 * 192)
        assert "reg_token" in counted.units["stem"].tensors
        assert counted.units["blocks.0"].tensors["ls1.gamma"].shape == (192,)
    else:  # ReLU keeps its output, which the next product keeps too; GELU its input as well
        assert extra == -4 * tokens * SMALL_BERT["hidden_dim"]


def test_weights_in_a_folder_tell_their_architecture(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(
        json.dumps(SMALL_BERT | {"model_type": "distilbert", "torch_dtype": "float32"})
    )
    from_folder = known({"family": "distilbert", "weights": str(tmp_path)})
    assert from_folder == known({"family": "distilbert", "config": SMALL_BERT})
    deeper = known({"family": "distilbert", "weights": str(tmp_path), "config": {"n_layers": 3}})
    assert deeper.depth == 3
    assert by_formulas(EncoderSpec(family="ast", weights=str(tmp_path))) is None
    (tmp_path / "config.json").write_text("{")
    assert by_formulas(EncoderSpec(family="distilbert", weights=str(tmp_path))) is None


def test_timm_weights_in_a_folder_tell_their_size(tmp_path: Path) -> None:
    config = {
        "architecture": "vit_tiny_patch16_224",
        "model_args": {"depth": 3, "num_classes": 0, "global_pool": "token"},
        "pretrained_cfg": {"input_size": [3, 64, 64]},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    architecture = known({"family": "vit", "arch": "vit_tiny_patch16_224", "weights": str(tmp_path)})
    assert (architecture.depth, architecture.tokens) == (3, 17)
    assert by_formulas(EncoderSpec(family="vit", arch="vit_small_patch16_224", weights=str(tmp_path))) is None


def test_known_hub_ids_are_tabled() -> None:
    assert known({"family": "ast", "weights": "bookbot/distil-ast-audioset"}).depth == 6
    assert known({"family": "distilbert", "weights": "distilbert-base-cased"}).units["stem"].tensors[
        "word_embeddings.weight"
    ].shape == (28996, 768)
    assert by_formulas(EncoderSpec(family="ast", weights="distilbert-base-cased")) is None


def test_an_architecture_survives_json() -> None:
    for values in ENCODERS.values():
        architecture = known(values)
        assert Architecture.from_values(json.loads(json.dumps(architecture.to_values()))) == architecture
