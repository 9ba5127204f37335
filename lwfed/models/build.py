"""Building of models: a model without weights, its tensors' types and shapes, their initial values, and loading."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lwfed.models.families import family_of
from lwfed.models.initial import initial_unit
from lwfed.models.multimodal import Multimodal
from lwfed.models.pretrained import pretrained_tensors
from lwfed.models.slots import Slots
from lwfed.plan.units import is_adapter
from lwfed.spec.model import EncoderSpec, ModelSpec
from lwfed.types.seeds import derive
from lwfed.types.tensors import TensorSpec, unit_of


def skeleton(
    model: ModelSpec, *, depth: Mapping[str, int], num_classes: int | None, lacks: Collection[str] = ()
) -> Multimodal:
    """Builds a model on the meta device, with every name and shape but no weights.

    Args:
        model: The model.
        depth: Modality -> number of blocks present.
        num_classes: C; required by the supervised objective.
        lacks: Modalities whose encoders and projection heads are left out.

    Returns:
        The model; `load` puts weights into it.

    Raises:
        SpecError: An architecture or an override is wrong.
    """
    with torch.device("meta"):
        encoders = {
            modality: family_of(encoder).build(encoder, depth=depth[modality])
            for modality, encoder in model.encoders.items()
            if modality not in lacks
        }
        return Multimodal(model, encoders=encoders, num_classes=num_classes)


def input_settings(encoder: EncoderSpec) -> dict[str, Any]:
    """Returns an encoder's requirements for its inputs.

    Returns:
        For images `image_size`; for texts `max_tokens`, `tokenizer` (None: bytes) and `vocab_size`; for sounds
        `num_mel_bins` and `max_length` (frames).
    """
    return family_of(encoder).input_settings(encoder)


def tensor_specs(module: nn.Module) -> dict[str, TensorSpec]:
    """Returns the types and shapes of all stored tensors, sorted by canonical name."""
    return (module.slots if isinstance(module, Multimodal) else Slots(module)).specs


def initial_tensors(
    model: ModelSpec, *, units: Sequence[str], depth: Mapping[str, int], num_classes: int | None, seed: str
) -> dict[str, Tensor]:
    """Returns the initial tensors of units: pretrained if the spec names weights, else seeded.

    With `fresh_norm` a final norm starts at one and zero whatever the weights. A unit's tensors depend neither on the
    depth nor on the other units requested.

    Args:
        model: The model.
        units: Names of the units.
        depth: Modality -> number of blocks present, enough for the units.
        num_classes: C; required by the supervised objective.
        seed: The run's seed.

    Returns:
        Canonical name -> tensor on the CPU.

    Raises:
        SpecError: An architecture or an override is wrong.
        DataError: Pretrained weights are missing, are a pickle, or have another architecture.
        UnreachableError: A hub id is not cached, and the hub cannot be reached.
    """
    module = skeleton(model, depth=depth, num_classes=num_classes)
    tensors: dict[str, Tensor] = {}
    wanted: dict[str, list[str]] = {}
    for unit in units:
        modality, _, part = unit.partition(".")
        # "": the fused prediction head, a fusion or a temperature
        head = part in ("", "projection", "prediction") or is_adapter(unit)
        fresh = head or (part == "norm" and model.encoders[modality].fresh_norm)
        if not fresh and model.encoders[modality].weights is not None:
            wanted.setdefault(modality, []).append(unit)
            continue
        std = None if head else module.encoder(modality).init_std
        tensors |= initial_unit(module.get_submodule(unit), prefix=unit, seed=derive(seed, "init", unit), std=std)
    for modality, names in wanted.items():
        shapes = {
            f"{unit}.{name}": tuple(tensor.shape)
            for unit in names
            for name, tensor in module.get_submodule(unit).state_dict().items()
        }
        tensors |= pretrained_tensors(model.encoders[modality], modality=modality, shapes=shapes)
    return tensors


def load(module: Multimodal, tensors: Mapping[str, Tensor]) -> Multimodal:
    """Puts tensors into a model without copying them, so that training the model changes them.

    Args:
        module: The model, such as a skeleton; `module.slots.empty()` takes them out again.
        tensors: Canonical name -> tensor, with exactly the model's names.

    Returns:
        The same model.

    Raises:
        CheckpointError: Names are missing or unexpected, or a shape or type is wrong.
    """
    module.slots.fill(tensors)
    return module


def load_units(module: Multimodal, tensors: Mapping[str, Tensor], *, units: Sequence[str]) -> None:
    """Puts the tensors of the given units into a model without copying them; other units do not change."""
    for unit in units:
        own = {name.removeprefix(f"{unit}."): tensor for name, tensor in tensors.items() if unit_of(name) == unit}
        module.get_submodule(unit).load_state_dict(own, strict=True, assign=True)


def without_prefix(module: Multimodal, *, cut: Mapping[str, int]) -> Multimodal:
    """Removes frozen stems and leading blocks from a model whose inputs are their outputs; names do not change.

    Args:
        module: The model; changed in place.
        cut: Modality -> number of leading blocks to remove, for the modalities that lose any.
    """
    for modality, count in cut.items():
        encoder = module.encoder(modality)
        encoder.stem = nn.Identity()
        for index in range(count):
            encoder.blocks[index] = nn.Identity()
    return module


def set_trained(module: Multimodal, *, trained: Sequence[str]) -> None:
    """Sets which units are trained: only these have gradients, active dropout and changing BatchNorm statistics.

    Args:
        module: The model.
        trained: Names of the trained units.
    """
    if module.trained_units == tuple(trained):
        return
    module.requires_grad_(False)
    module.eval()
    for unit in trained:
        module.get_submodule(unit).train().requires_grad_(True)
    module.trained_units = tuple(trained)
