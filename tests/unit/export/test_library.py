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
from lwfed.plan.units import units_of
from lwfed.spec.model import ModelSpec
from tests.unit.models import small

MODEL = small.contrastive(image=small.vit(), text=small.distilbert(), audio=small.ast())
DEPTH = {"image": 3, "text": 2, "audio": 3}  # two encoders are not whole yet


@pytest.fixture(scope="module")
def tensors() -> dict[str, torch.Tensor]:
    return initial_tensors(MODEL, units=units_of(MODEL, DEPTH), depth=DEPTH, num_classes=None, seed="4")


def _write(folder: Path, state: dict[str, torch.Tensor], config: dict[str, Any]) -> str:
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


def _feature(module: Multimodal, modality: str, batch: Any) -> torch.Tensor:
    encoder = module.encoder(modality)
    return encoder.pool(module.prefix(modality, batch, cut=len(encoder.blocks)))


def test_plain_libraries_read_it(tensors: dict[str, torch.Tensor], tmp_path: Path) -> None:
    import timm
    from transformers import AutoModel
    from transformers.utils import logging

    logging.disable_progress_bar()
    module = load(skeleton(MODEL, depth=DEPTH, num_classes=None), tensors).eval()
    batch = small.inputs()
    for modality in MODEL.modalities:
        folder = tmp_path / modality
        folder.mkdir()
        path = _write(folder, *to_library(MODEL.encoders[modality], tensors, modality=modality))
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


def test_an_export_is_weights_to_start_from(tensors: dict[str, torch.Tensor], tmp_path: Path) -> None:
    encoders = {}
    for modality, encoder in MODEL.encoders.items():
        folder = tmp_path / modality
        folder.mkdir()
        path = _write(folder, *to_library(encoder, tensors, modality=modality))
        encoders[modality] = encoder.model_copy(update={"weights": path, "config": {}})
        assert weights_version(encoders[modality])
    again = MODEL.model_copy(update={"encoders": encoders})
    units = [unit for unit in units_of(again, DEPTH) if not unit.endswith("projection")]
    found = initial_tensors(again, units=units, depth=DEPTH, num_classes=None, seed="0")
    assert found and all(torch.equal(tensor, tensors[name]) for name, tensor in found.items())


def test_heads_are_plain_layers(tensors: dict[str, torch.Tensor]) -> None:
    states = heads(MODEL, tensors)
    assert set(states) == {"image", "text", "audio"}
    module = load(skeleton(MODEL, depth=DEPTH, num_classes=None), tensors).eval()
    batch = small.inputs()["image"]
    state = states["image"]
    value = _feature(module, "image", batch)
    for i in range(MODEL.projection.layers - 1):
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
    assert torch.equal(value, module.project("image", batch))


def test_prediction_head_is_exported() -> None:
    model: ModelSpec = small.supervised()
    depth = {"image": 1, "audio": 1}
    tensors = initial_tensors(model, units=units_of(model, depth), depth=depth, num_classes=5, seed="4")
    prediction = heads(model, tensors)["prediction"]
    nn.Linear(16, 5).load_state_dict({name: prediction[f"out.{name}"] for name in ("weight", "bias")})
