"""Converts canonical tensors to plain timm and transformers state dicts with their configs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from lwfed.models.families import family_of
from lwfed.plan.units import is_adapter
from lwfed.spec.model import EncoderSpec, ModelSpec

_HEADS = ("adapter.", "projection.", "prediction.")
"""Prefixes of a modality's tensors that are no part of its encoder."""


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
    family, prefix = family_of(encoder), f"{modality}."
    own = {name.removeprefix(prefix): tensor for name, tensor in sorted(tensors.items()) if name.startswith(prefix)}
    own = {name: tensor for name, tensor in own.items() if not name.startswith(_HEADS)}
    state = {family.PREFIXES.to_library(name): tensor for name, tensor in own.items()}
    blocks = {name.split(".")[1] for name in own if name.startswith("blocks.")}
    return state, family.library_config(encoder, depth=len(blocks))


def heads(model: ModelSpec, tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Returns the heads, and the fusion if it has parameters.

    An adapter is multiplied into the first layer of the head that it feeds: both are linear and without bias. The
    prediction heads of single modalities, whose losses are blended, are left out: the fused one predicts.

    Args:
        model: The model.
        tensors: Canonical name -> tensor of the whole model.

    Returns:
        A modality, whose head is its projection, `fusion` or `prediction` -> its state dict.
    """
    units = {modality: f"{modality}.projection." for modality in model.modalities}
    units |= {unit: f"{unit}." for unit in ("fusion", "prediction")}
    states = {
        head: {name.removeprefix(prefix): t for name, t in sorted(tensors.items()) if name.startswith(prefix)}
        for head, prefix in units.items()
    }
    for name, tensor in tensors.items():
        if is_adapter(name):
            state = states[name.partition(".")[0]]
            first = "hidden.0.linear.weight" if "hidden.0.linear.weight" in state else "out.linear.weight"
            state[first] = (state[first].double() @ tensor.double()).float()
    return {head: state for head, state in states.items() if state}
