"""Pretrained weights under canonical names, read per unit as blocks are appended."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor

from lwfed.models.families import family_of
from lwfed.models.names import to_canonical
from lwfed.models.weights import normalise_of, read_tensors, tokenizer_of
from lwfed.spec.model import EncoderSpec, NormaliseSpec
from lwfed.types.errors import DataError
from lwfed.types.tensors import unit_of


def pretrained_tensors(encoder: EncoderSpec, *, modality: str, units: Collection[str]) -> dict[str, Tensor]:
    """Reads an encoder's pretrained tensors.

    Args:
        encoder: The encoder; it names `weights`.
        modality: The encoder's name in the model.
        units: The units to read, such as `image.stem` and `image.blocks.3`.

    Returns:
        Canonical name -> tensor, fp32.

    Raises:
        DataError: The weights are missing, unreadable, a pickle, or have another architecture.
        UnreachableError: A hub id is not cached, and the hub cannot be reached.
    """
    if encoder.weights is None:
        raise ValueError("the encoder names no weights")
    family = family_of(encoder)
    library = family.adapt(encoder, read_tensors(encoder.weights))
    tensors = {f"{modality}.{to_canonical(name, prefixes=family.PREFIXES)}": value for name, value in library.items()}
    return {
        name: tensor.to(torch.float32).contiguous()
        for name, tensor in sorted(tensors.items())
        if unit_of(name) in units
    }


def require_complete(tensors: dict[str, Tensor], *, shapes: dict[str, tuple[int, ...]], weights: str | None) -> None:
    """Checks pretrained tensors against the encoder's tensors.

    Args:
        tensors: The tensors read.
        shapes: The encoder's tensors: canonical name -> shape.
        weights: Name of the weights, for the message.

    Raises:
        DataError: A tensor is missing or has another shape.
    """
    for name, shape in sorted(shapes.items()):
        if name not in tensors:
            raise DataError(
                f"the weights {weights} have no tensor for {name}", remedy="name weights of this architecture"
            )
        if tuple(tensors[name].shape) != shape:
            raise DataError(
                f"{name} is {tuple(tensors[name].shape)} in the weights {weights} and {shape} in the model",
                remedy="make `config` agree with the weights",
            )


def resolved(encoder: EncoderSpec) -> EncoderSpec:
    """Writes the weights' architecture into `config`, so that building the encoder needs no file.

    Returns:
        The same architecture without `weights`, and with the effective `tokenizer` and `normalise`.

    Raises:
        DataError: The weights' config.json is missing or of another kind.
        UnreachableError: A hub id is not cached, and the hub cannot be reached.
    """
    if encoder.weights is None:
        return encoder
    normalise = normalise_of(encoder)
    return encoder.model_copy(
        update={
            "weights": None,
            "tokenizer": tokenizer_of(encoder),
            "normalise": None if normalise is None else NormaliseSpec(mean=normalise.mean, std=normalise.std),
            "config": family_of(encoder).config(encoder),
        }
    )
