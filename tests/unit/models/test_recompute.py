"""A block computed again in the backward pass is the same block: outputs, gradients and random numbers, to the bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lwfed.models.build import initial_tensors, load, set_trained, skeleton
from lwfed.models.inspect import SavedBytes
from lwfed.models.multimodal import Multimodal
from lwfed.models.protocol import Encoder
from lwfed.models.recompute import set_recomputed
from lwfed.objectives.contrastive import contrastive_loss
from lwfed.plan.units import units_of
from lwfed.spec.model import ModelSpec
from tests.unit.models import small

DEPTH = {"image": 3, "text": 2}


def model_of(model: ModelSpec, *, trained: tuple[str, ...] | None = None) -> Multimodal:
    units = units_of(model, DEPTH)
    tensors = initial_tensors(model, units=units, depth=DEPTH, num_classes=None, seed="1")
    module = load(skeleton(model, depth=DEPTH, num_classes=None), tensors)
    set_trained(module, trained=units if trained is None else trained)
    return module


def step(*, again: bool, cut: dict[str, int], bf16: bool = False, **model: Any) -> dict[str, Tensor]:
    """One pass with dropout: projections, gradients, and the random number that follows."""
    spec = small.contrastive()
    trained = tuple(
        unit
        for unit in units_of(spec, DEPTH)
        if not any(cut[m] and (unit == f"{m}.stem" or unit in {f"{m}.blocks.{n}" for n in range(cut[m])}) for m in cut)
    )
    module = model_of(spec, trained=trained)
    set_recomputed(module, again)
    inputs = small.inputs()
    batch = [inputs["image"], *inputs["text"].values()]
    saved = SavedBytes([*module.parameters(), *module.buffers(), *batch])
    with torch.random.fork_rng():
        torch.manual_seed(5)
        with saved.watch(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            outputs = module(inputs, cut=cut)
            loss = contrastive_loss(outputs, temperature=0.1)
        between = torch.rand(1)
        loss.backward()
        after = torch.rand(1)
    found = {name: p.grad for name, p in module.named_parameters() if p.grad is not None}
    return {**found, **outputs, "loss": loss, "between": between, "after": after, "saved": torch.tensor(saved.total)}


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("cut", [{"image": 0, "text": 0}, {"image": 2, "text": 1}])
def test_outputs_and_gradients_are_the_same_bits_and_less_is_kept(cut: dict[str, int], bf16: bool) -> None:
    plain, again = step(again=False, cut=cut, bf16=bf16), step(again=True, cut=cut, bf16=bf16)
    assert plain.keys() == again.keys() and "text.blocks.1.ffn.lin1.weight" in plain
    assert again.pop("saved") < 0.6 * plain.pop("saved")
    for name in plain:
        assert torch.equal(plain[name], again[name]), name


def test_audio_too() -> None:
    encoder = skeleton(small.supervised(), depth={"image": 1, "audio": 3}, num_classes=2).encoder("audio")
    gradients = []
    for recomputed in (False, True):
        built = encoder.to_empty(device="cpu")
        generator = torch.Generator().manual_seed(2)
        for parameter in built.parameters():
            parameter.data.normal_(0, 0.1, generator=generator)
            parameter.grad = None
        built.train().requires_grad_(True)
        built.recomputed = recomputed
        state = built.advance(built.embed(small.inputs()["audio"]), start=0, stop=3)
        built.pool(state).square().sum().backward()
        gradients.append([p.grad.clone() for p in built.parameters() if p.grad is not None])
    assert len(gradients[0]) > 10
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_frozen_blocks_run_once() -> None:
    calls = []

    def run(tokens: Tensor) -> Tensor:
        calls.append(torch.is_grad_enabled())
        return tokens.exp().sin()

    encoder = Encoder(nn.Identity(), blocks=nn.ModuleList(), width=3, init_std=0.0)
    encoder.recomputed = True
    tokens = torch.ones(3, requires_grad=True)
    with torch.no_grad():
        encoder.through(run, tokens)
    assert calls == [False]
    encoder.through(run, tokens).sum().backward()
    assert calls == [False, True, True]
    expected = torch.ones(3, requires_grad=True)
    expected.exp().sin().sum().backward()
    assert torch.equal(tokens.grad, expected.grad)


def test_running_statistics_count_a_batch_once() -> None:
    model, depth = small.contrastive(image=small.resnet(), text=small.distilbert()), {"image": 4, "text": 1}
    tensors = initial_tensors(model, units=units_of(model, depth), depth=depth, num_classes=None, seed="1")
    found = []
    for again in (False, True):
        module = load(skeleton(model, depth=depth, num_classes=None), {n: t.clone() for n, t in tensors.items()})
        set_trained(module, trained=units_of(model, depth))
        set_recomputed(module, again)
        with torch.random.fork_rng():
            torch.manual_seed(5)  # the head's dropout
            module.project("image", small.inputs()["image"]).square().sum().backward()
        gradients = {f"{n}'": p.grad for n, p in module.named_parameters() if p.grad is not None}
        found.append({n: t for n, t in module.named_buffers() if n.startswith("image")} | gradients)
    assert int(found[1]["image.blocks.3.0.bn1.num_batches_tracked"]) == 1 and len(found[0]) > 60
    assert all(torch.equal(tensor, found[1][name]) for name, tensor in found[0].items())
