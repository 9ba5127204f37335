"""Laws of the places of a model's tensors: they are the state dict's, and what is put in comes out again."""

from __future__ import annotations

import pytest
import torch

from lwfed.models.build import initial_tensors, load, set_trained, skeleton, tensor_specs
from lwfed.plan.units import units_of
from lwfed.types.errors import CheckpointError
from tests.tiny import DEPTHS, ENCODERS, tiny_spec

ALL = [*ENCODERS.items(), ("supervised", ("model.objective={kind: supervised, hidden: 12}",))]


@pytest.mark.parametrize("overrides", [one for _, one in ALL], ids=[name for name, _ in ALL])
def test_they_are_those_of_the_state_dict(overrides: tuple[str, ...]) -> None:
    model = tiny_spec("runs", *overrides).model
    module = skeleton(model, depth=DEPTHS, num_classes=5)
    assert list(tensor_specs(module)) == sorted(module.state_dict())
    assert {n for n, spec in tensor_specs(module).items() if not spec.buffer} == set(dict(module.named_parameters()))
    assert [name for name, _ in module.slots.parameters()] == [name for name, _ in module.named_parameters()]
    tensors = initial_tensors(model, units=units_of(model, DEPTHS), depth=DEPTHS, num_classes=5, seed="0")
    units = [unit for unit in units_of(model, DEPTHS) if unit.endswith("projection")]
    for _ in range(2):
        load(module, tensors)
        set_trained(module, trained=units)
        state = module.state_dict()
        assert all(state[name].data_ptr() == tensor.data_ptr() for name, tensor in tensors.items()), "no copy"
        assert all(torch.equal(tensor, tensors[name]) for name, tensor in module.slots.tensors().items())
        module.slots.empty()
        assert all(tensor.is_meta for tensor in module.state_dict().values())
        needs = {name for name, parameter in module.named_parameters() if parameter.requires_grad}
        assert needs == {name for name in dict(module.named_parameters()) if name.rpartition(".projection.")[1]}


def test_what_does_not_fit_is_named_and_changes_nothing() -> None:
    model = tiny_spec("runs").model
    module = skeleton(model, depth=DEPTHS, num_classes=None)
    tensors = initial_tensors(model, units=units_of(model, DEPTHS), depth=DEPTHS, num_classes=None, seed="0")
    name = "image.norm.weight"
    for spoilt, message in (
        ({n: t for n, t in tensors.items() if n != name}, f"lacks 1 tensor\\(s\\), such as {name}"),
        ({**tensors, "image.norm.gain": tensors[name]}, "has unknown 1 tensor"),
        ({**tensors, name: tensors[name][:-1]}, r"image.norm.weight is F32\[15\] in a checkpoint, not F32\[16\]"),
        ({**tensors, name: tensors[name].double()}, r"is F64\[16\]"),
    ):
        with pytest.raises(CheckpointError, match=message):
            load(module, spoilt)
        assert all(tensor.is_meta for tensor in module.state_dict().values())


def test_what_is_trained_is_set_again_once_another_mode_was() -> None:
    module = skeleton(tiny_spec("runs").model, depth=DEPTHS, num_classes=None)

    for spoil in (lambda: module.eval(), lambda: module.train(), lambda: module.requires_grad_(True), lambda: None):
        for units in (["image.projection"], ["image.projection", "text.projection"]):
            spoil()
            set_trained(module, trained=units)
            needs = {name for name, parameter in module.named_parameters() if parameter.requires_grad}
            assert {name.partition(".projection")[0] for name in needs} == {unit.partition(".")[0] for unit in units}
            assert {name for name, one in module.named_modules() if one.training} == {
                name for name, _ in module.named_modules() if any(f"{name}.".startswith(f"{unit}.") for unit in units)
            }


def test_a_buffer_that_is_not_stored_is_refused() -> None:
    module = skeleton(tiny_spec("runs").model, depth=DEPTHS, num_classes=None)
    module.register_buffer("odd", torch.empty(2, device="meta"), persistent=False)
    with pytest.raises(ValueError, match="checkpoints do not store odd"):
        load(module, {})
