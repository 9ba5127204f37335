"""Converts canonical tensors to plain timm and transformers state dicts with their configs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from lwfed.catalog.encoder import encoder_family
from lwfed.models.families import family_of
from lwfed.spec.model import EncoderSpec, ModelSpec


def to_library(
    encoder: EncoderSpec, tensors: Mapping[str, Tensor], *, modality: str
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Returns one encoder with its library's names.

    Args:
        encoder: The encoder.
        tensors: Canonical name -> tensor; may include other modalities and heads.
        modality: The encoder's name in the model.

    Returns:
        The contents of `model.safetensors` and `config.json`, which
        `timm.create_model("local-dir:FOLDER", pretrained=True)` or `AutoModel.from_pretrained(FOLDER)` reads from one
        folder. The model has as many blocks as `tensors` has.
    """
    family = family_of(encoder)
    state: dict[str, Tensor] = {}
    blocks: set[str] = set()
    for name, tensor in sorted(tensors.items()):
        owner, _, rest = name.partition(".")
        if owner != modality or rest.startswith("projection."):
            continue
        state[family.PREFIXES.to_library(rest)] = tensor
        if rest.startswith("blocks."):
            blocks.add(rest.split(".")[1])
    return state, family.library_config(encoder, depth=len(blocks))


def heads(model: ModelSpec, tensors: Mapping[str, Tensor]) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """Returns the heads, and the fusion if it has parameters.

    Args:
        model: The model.
        tensors: Canonical name -> tensor of the whole model.

    Returns:
        Unit (`image.projection` ..., `fusion`, `prediction`) -> its state dict, and a description for readers.
    """
    states: dict[str, dict[str, Tensor]] = {}
    for head in (*(f"{modality}.projection" for modality in model.modalities), "fusion", "prediction"):
        state = {n.removeprefix(head + "."): t for n, t in sorted(tensors.items()) if n.startswith(head + ".")}
        if state:
            states[head] = state
    config = {
        "modalities": list(model.modalities),
        "projection": model.projection.model_dump(mode="json"),
        "projection_layers": "hidden.<i>: linear (no bias), dropout, BatchNorm1d, ReLU; out: linear (no bias), "
        "BatchNorm1d without affine; then L2-normalise for retrieval",
        "objective": model.objective.model_dump(mode="json"),
        "feature": {m: encoder_family(e.family).usage.feature for m, e in model.encoders.items()},
    }
    return states, config
