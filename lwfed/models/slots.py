"""The places of a model's tensors, so that weights are put in and taken out without a walk through its modules.

A process that trains hundreds of clients does so hundreds of times: for a small model the walks took as long as a step.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from torch import Tensor, nn

from lwfed.params import spec_of
from lwfed.types.errors import CheckpointError
from lwfed.types.tensors import TensorSpec


class Slot(NamedTuple):
    """The place of one tensor.

    Attributes:
        owner: The parameters or the buffers of the module that has it.
        key: Its name there.
        empty: The tensor on the meta device that stands there while the model has no weights.
    """

    owner: dict[str, Tensor | None]
    key: str
    empty: Tensor


class Slots:
    """The places of all tensors of a model that are stored.

    Args:
        module: The model, without weights; its structure must not change any more.

    Attributes:
        specs: Types and shapes of the tensors, sorted by canonical name.
    """

    def __init__(self, module: nn.Module) -> None:
        slots, self._unstored = dict[str, Slot](), ""
        for prefix, owner in module.named_modules():
            for members in (owner._parameters, owner._buffers):
                for key, tensor in members.items():
                    name = f"{prefix}.{key}" if prefix else key
                    if tensor is not None and key not in owner._non_persistent_buffers_set:
                        slots[name] = Slot(members, key, tensor)
                    elif tensor is not None and tensor.is_meta:
                        self._unstored = name
        self._slots = {name: slots[name] for name in sorted(slots)}
        self._parameters = [(name, slot) for name, slot in slots.items() if isinstance(slot.empty, nn.Parameter)]
        self.specs: dict[str, TensorSpec] = {
            name: spec_of(slot.empty, buffer=not isinstance(slot.empty, nn.Parameter))
            for name, slot in self._slots.items()
        }

    def fill(self, tensors: Mapping[str, Tensor]) -> None:
        """Puts tensors into the model without copying them; which of them need gradients does not change.

        Args:
            tensors: Canonical name -> tensor, with exactly the model's names.

        Raises:
            CheckpointError: Names are missing or unexpected, or a shape or type is wrong.
            ValueError: The model has a buffer that checkpoints do not store.
        """
        if self._unstored:
            raise ValueError(f"checkpoints do not store {self._unstored}: the architecture is not supported")
        specs = self.specs
        for what, names in (("lacks", specs.keys() - tensors.keys()), ("has unknown", tensors.keys() - specs.keys())):
            if names:
                raise CheckpointError(
                    f"a checkpoint {what} {len(names)} tensor(s), such as {min(names)}",
                    remedy="it belongs to another stage or model: train the stage again",
                )
        for name, slot in self._slots.items():
            tensor, empty = tensors[name], slot.empty
            if tensor.shape != empty.shape or tensor.dtype != empty.dtype:
                found, spec = spec_of(tensor), specs[name]
                raise CheckpointError(
                    f"{name} is {found.dtype}{list(found.shape)} in a checkpoint, not {spec.dtype}{list(spec.shape)}",
                    remedy="it belongs to another model: train the stage again",
                )
        for name, slot in self._slots.items():
            tensor, before = tensors[name], slot.owner[slot.key]
            assert before is not None
            if type(before) is nn.Parameter:
                needs = before.requires_grad
                tensor = tensor.requires_grad_(needs) if type(tensor) is nn.Parameter else nn.Parameter(tensor, needs)
            slot.owner[slot.key] = tensor

    def empty(self) -> None:
        """Takes the weights out of the model again; which of them need gradients does not change."""
        for slot in self._slots.values():
            now, empty = slot.owner[slot.key], slot.empty
            needs = now is not None and now.requires_grad
            slot.owner[slot.key] = empty if empty.requires_grad == needs else empty.requires_grad_(needs)

    def parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yields the model's parameters with their canonical names, in the order of `named_parameters`."""
        for name, slot in self._parameters:
            parameter = slot.owner[slot.key]
            assert type(parameter) is nn.Parameter
            yield name, parameter

    def tensors(self) -> dict[str, Tensor]:
        """Returns the model's tensors, sorted by canonical name."""
        found: dict[str, Tensor] = {}
        for name, slot in self._slots.items():
            tensor = slot.owner[slot.key]
            assert tensor is not None
            found[name] = tensor
        return found
