"""Pretrained weights under canonical names, read per unit as blocks are appended."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from lwfed.models.families import family_of
from lwfed.models.weights import normalise_of, read_tensors, tokenizer_of
from lwfed.spec.model import EncoderSpec, NormaliseSpec
from lwfed.types.errors import DataError
from lwfed.types.tensors import unit_of


def pretrained_tensors(
    encoder: EncoderSpec, *, modality: str, shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, Tensor]:
    """Reads the pretrained tensors of some units, and checks them against the encoder's.

    Args:
        encoder: The encoder; it names `weights`.
        modality: The encoder's name in the model.
        shapes: The encoder's tensors in the units to read: canonical name -> shape.

    Returns:
        Canonical name -> tensor, fp32 (counters int64).

    Raises:
        DataError: The weights are missing, unreadable, a pickle, quantised or not finite, or have another architecture.
        UnreachableError: A hub id is not cached, and the hub cannot be reached.
    """
    weights, family = encoder.weights, family_of(encoder)
    if weights is None:
        raise ValueError("the encoder names no weights")
    library = family.adapt(encoder, read_tensors(weights))
    tensors = {f"{modality}.{family.PREFIXES.to_canonical(name)}": value for name, value in library.items()}
    units = {unit_of(name) for name in shapes}
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
    for name, tensor in sorted(tensors.items()):  # those of later stages too, before the first is trained
        if not bool(torch.isfinite(tensor.to(torch.float32)).all()):
            raise DataError(
                f"{name} has values in the weights {weights} that are not finite", remedy="copy or download them again"
            )
    return {
        name: tensor.to(torch.float32 if tensor.is_floating_point() else torch.int64).contiguous()
        for name, tensor in sorted(tensors.items())
        if unit_of(name) in units
    }


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
