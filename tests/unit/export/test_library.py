"""What is exported is plain timm and transformers: loaded without lwfed it gives the same features, bit for bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

from lwfed.export.library import heads, to_library
from lwfed.models.build import initial_tensors, load, skeleton
from lwfed.models.identity import weights_version
from lwfed.models.multimodal import Multimodal
from lwfed.plan.units import group_of, units_of
from lwfed.spec.model import ModelSpec
from tests.unit.models import small

MODELS = {
    "distilbert": small.contrastive(image=small.vit(), text=small.distilbert(), audio=small.ast()),
    "mobilebert": small.contrastive(image=small.resnet(), text=small.mobilebert(), audio=small.ast()),
    "bert": small.contrastive(image=small.resnet(), text=small.bert()),
}
DEPTH = {"image": 3, "text": 2, "audio": 3}  # two encoders are not whole yet


@pytest.fixture(scope="module", params=MODELS)
def model(request: pytest.FixtureRequest) -> ModelSpec:
    return MODELS[request.param]


@pytest.fixture(scope="module")
def tensors(model: ModelSpec) -> dict[str, torch.Tensor]:
    drawn = initial_tensors(model, units=units_of(model, DEPTH), depth=DEPTH, num_classes=None, seed="4")
    for name, tensor in drawn.items():
        if ".running_" in name:
            tensor.uniform_(0.5, 2, generator=torch.Generator().manual_seed(len(name)))
    return drawn


def _write(folder: Path, state: dict[str, torch.Tensor], config: dict[str, Any]) -> str:
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


def _feature(module: Multimodal, modality: str, batch: Any) -> torch.Tensor:
    encoder = module.encoder(modality)
    return encoder.pool(module.prefix(modality, batch, cut=len(encoder.blocks)))


def test_plain_libraries_read_it(model: ModelSpec, tensors: dict[str, torch.Tensor], tmp_path: Path) -> None:
    import timm
    from transformers import AutoModel
    from transformers.utils import logging

    logging.disable_progress_bar()
    module = load(skeleton(model, depth=DEPTH, num_classes=None), tensors).eval()
    batch = small.inputs()
    for modality in model.modalities:
        folder = tmp_path / modality
        folder.mkdir()
        path = _write(folder, *to_library(model.encoders[modality], tensors, modality=modality))
        with torch.random.fork_rng():
            if modality == "image":
                library = timm.create_model(f"local-dir:{path}", pretrained=True)
            else:
                library = AutoModel.from_pretrained(path, local_files_only=True)
        library.eval()
        given = batch[modality]
        with torch.no_grad():
            if modality == "image":
                feature = library(given)
            elif modality == "text":
                feature = library(given["ids"], attention_mask=given["mask"].long()).last_hidden_state[:, 0]
            else:
                feature = library(given).last_hidden_state[:, 0]
            assert torch.equal(feature, _feature(module, modality, given))


def test_an_export_is_weights_to_start_from(model: ModelSpec, tensors: dict[str, torch.Tensor], tmp_path: Path) -> None:
    encoders = {}
    for modality, encoder in model.encoders.items():
        folder = tmp_path / modality
        folder.mkdir()
        path = _write(folder, *to_library(encoder, tensors, modality=modality))
        encoders[modality] = encoder.model_copy(update={"weights": path, "config": {}})
        assert weights_version(encoders[modality])
    again = model.model_copy(update={"encoders": encoders})
    units = [unit for unit in units_of(again, DEPTH) if group_of(unit) != "projection"]
    assert small.whole_depth(again.encoders["image"]) == DEPTH["image"], "the export has the blocks that were present"
    found = initial_tensors(again, units=units, depth=DEPTH, num_classes=None, seed="0")
    assert found and all(torch.equal(tensor, tensors[name]) for name, tensor in found.items())


@pytest.mark.parametrize("name", ["distilbert", "mobilebert"])
@pytest.mark.parametrize("layers", [1, 3])
def test_heads_are_plain_layers(name: str, layers: int) -> None:
    """An adapter is part of its head's first layer."""
    projection = MODELS[name].projection.model_copy(update={"layers": layers})
    model = MODELS[name].model_copy(update={"projection": projection})
    tensors = initial_tensors(model, units=units_of(model, DEPTH), depth=DEPTH, num_classes=None, seed="4")
    states = heads(model, tensors)
    assert set(states) == {"image", "text", "audio"}
    module = load(skeleton(model, depth=DEPTH, num_classes=None), tensors).eval()
    batch = small.inputs()["image"]
    state = states["image"]
    value = _feature(module, "image", batch)
    assert value.shape[1] == {"distilbert": 24, "mobilebert": 16}[name]
    for i in range(layers - 1):
        name = f"hidden.{i}."
        value = F.batch_norm(
            F.linear(value, state[name + "linear.weight"]),
            state[name + "norm.running_mean"],
            state[name + "norm.running_var"],
            state[name + "norm.weight"],
            state[name + "norm.bias"],
        ).relu()
    value = F.batch_norm(
        F.linear(value, state["out.linear.weight"]), state["out.norm.running_mean"], state["out.norm.running_var"]
    )
    if name == "distilbert":
        assert torch.equal(value, module.project("image", batch))
    torch.testing.assert_close(value, module.project("image", batch), rtol=1e-5, atol=1e-6)


def test_prediction_head_is_exported() -> None:
    model: ModelSpec = small.supervised()
    depth = {"image": 1, "audio": 1}
    tensors = initial_tensors(model, units=units_of(model, depth), depth=depth, num_classes=5, seed="4")
    prediction = heads(model, tensors)["prediction"]
    nn.Linear(16, 5).load_state_dict({name: prediction[f"out.{name}"] for name in ("weight", "bias")})
