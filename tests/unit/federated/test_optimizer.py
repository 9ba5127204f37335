"""Laws of the optimiser: moments are rounded without bias, take the ledger's bytes; a step may be inside backward."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from safetensors.torch import load_file, save_file
from torch import nn

from lwfed.cost import memory
from lwfed.federated import moments
from lwfed.federated.local import nbytes, states_bytes, stepping
from lwfed.federated.moments import MOMENTS
from lwfed.federated.optimizer import make_optimizer
from lwfed.federated.rounding import from_squares, random_bits, split_bits, to_bf16, to_squares
from lwfed.plan.stages import Rates, TrainingPlan
from lwfed.spec.training import TrainingSpec
from lwfed.types.tensors import TensorSpec
from tests.unit.federated.test_local_training import CPU, data, loss_of, network, run, same

FAST, SLOW = Rates(learning_rate=1e-2, weight_decay=0.1), Rates(learning_rate=1e-3, weight_decay=0.0)
DRAWS = 4096


def bits(count: int, *, start: int = 0, key: int = 12345) -> torch.Tensor:
    return random_bits(count, start=start, key=key, device=CPU)


def test_random_bits_are_even_and_depend_on_key_and_position_alone() -> None:
    drawn = bits(1 << 16)
    assert torch.equal(drawn[1000:1100], bits(100, start=1000))
    assert not torch.equal(drawn, bits(1 << 16, key=-7)) and drawn.unique().numel() == drawn.numel()
    for half in split_bits(drawn):
        assert half.min() >= 0 and half.max() < 1 << 16
        assert half.double().mean().item() == pytest.approx(32767.5, rel=0.01)
        counts = torch.bincount(half // 256, minlength=256).double()
        assert ((counts - 256) ** 2 / 256).sum() < 400, "chi-square with 255 degrees of freedom"


def test_bf16_rounding_is_unbiased_and_leaves_what_bf16_has() -> None:
    values = torch.tensor([1.0, 1.003, -1.003, 3.1e-12, 0.0, -2.5, 7e20]).repeat_interleave(DRAWS)
    rounded = to_bf16(values.clone(), chances=split_bits(bits(values.numel()))[0]).view(-1, DRAWS).double()
    exact = values.view(-1, DRAWS)[:, 0].double()
    step = exact.abs() * 2**-7
    assert ((rounded - exact[:, None]).abs() <= step[:, None]).all()
    assert ((rounded.mean(dim=1) - exact).abs() <= 4 * step / DRAWS**0.5).all()
    for n in (0, 4, 5):
        assert (rounded[n] == exact[n]).all()


@pytest.mark.parametrize("levels", [127, 255])
def test_rounding_to_squares_is_unbiased_within_a_step(levels: int) -> None:
    values = torch.cat([torch.zeros(1), torch.logspace(-7, 0, 254), torch.ones(1)]) * 3e-5
    blocks = values.repeat(DRAWS, 1)
    code, scale = to_squares(blocks, levels=levels, chances=split_bits(bits(blocks.numel()))[1].view_as(blocks))
    assert code.max() == levels and torch.equal(scale, torch.full_like(scale, 3e-5))
    found = from_squares(code.to(torch.int16), levels=levels, scale=scale).double()
    lower = (values.double() / 3e-5).sqrt() * levels
    step = (2 * lower + 1) / levels**2 * 3e-5
    assert ((found - values.double()).abs() <= 1.01 * step).all()
    assert ((found.mean(dim=0) - values.double()).abs() <= 4.5 * step / 2 / DRAWS**0.5 + 2e-5 * step).all()
    assert (to_squares(torch.zeros(2, 4), levels=levels, chances=torch.zeros(2, 4, dtype=torch.int32))[0] == 0).all()


def test_a_second_moment_above_zero_stays_above_zero() -> None:
    second = torch.logspace(-30, 0, 300)
    second[7] = 0
    kept = MOMENTS["int8"].empty(300, device=CPU)
    MOMENTS["int8"].write(kept, slice(0, 300), torch.zeros(300), second, bits=bits(300))
    assert torch.equal(MOMENTS["int8"].read(kept, slice(0, 300))[1] > 0, second > 0)


@pytest.mark.parametrize("kind", ["fp32", "bf16", "int8"])
def test_bytes_of_moments_are_the_ledgers(kind: str) -> None:
    assert memory.SCALE_BLOCK == moments.BLOCK
    parameters = [nn.Parameter(torch.ones(shape)) for shape in ((700, 3), (256,), (1,), (3, 257))]
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    optimizer = make_optimizer([(parameters, FAST)], moments=kind, seed="s")
    optimizer.step()
    plan = TrainingPlan.model_validate(TrainingSpec(moments=kind).model_dump(include=set(TrainingPlan.model_fields)))
    specs = [TensorSpec(tuple(parameter.shape)) for parameter in parameters] + [TensorSpec((9,), buffer=True)]
    assert states_bytes(optimizer) == memory.optimizer_bytes(specs, training=plan)
    assert memory.gradients_bytes(specs, training=plan) == nbytes(parameters)


@pytest.mark.parametrize(("kind", "tolerance"), [("bf16", 0.02), ("int8", 0.05)])
def test_rounded_moments_train_as_fp32_does(kind: str, tolerance: float) -> None:
    batches = data(150, size=16)
    batches = [(x, (x[:, :3] + x[:, 3:]).argmax(dim=1)) for x, _ in batches]
    modules = {name: network() for name in ("fp32", kind)}
    losses = {name: run(module, batches, moments=name).loss for name, module in modules.items()}
    assert not same(modules["fp32"], modules[kind])
    assert losses[kind] == pytest.approx(losses["fp32"], rel=tolerance)
    again = network()
    run(again, batches, moments=kind)
    assert same(again, modules[kind]), "rounding is seeded"


@pytest.mark.parametrize("kind", ["fp32", "bf16", "int8"])
@pytest.mark.parametrize("mu", [0.0, 0.3])
def test_a_step_inside_backward_gives_the_same_bits(kind: str, mu: float) -> None:
    modules = []
    for inside in (False, True):
        module = network(norm=True, dropout=0.2)
        groups = [(list(module[0].parameters()), SLOW), (list(module[1:].parameters()), FAST)]
        result = run(
            module, data(4), groups=groups, moments=kind, proximal_mu=mu, step_in_backward=inside,
            measure=[*module.parameters(), *module.buffers()],
        )  # fmt: skip
        modules.append(module)
        assert result.cost is not None
        largest = max(nbytes([p]) for p in module.parameters())
        assert result.cost.gradients_bytes == (largest if inside else nbytes(module.parameters()))
        assert all(p.grad is None and not p._post_accumulate_grad_hooks for p in module.parameters())
    assert same(*modules) and not same(modules[0], network(norm=True))


def test_a_step_inside_backward_refuses_what_needs_all_gradients() -> None:
    with pytest.raises(ValueError, match="gradient_accumulation"):
        run(network(), data(1), parts=2, step_in_backward=True)
    with pytest.raises(ValueError, match="clip_norm"):
        run(network(), data(1), clip_norm=1.0, step_in_backward=True)
    with pytest.raises(ValueError, match="gradient_accumulation"):
        TrainingSpec(step_in_backward=True, gradient_accumulation=2)


def train_on_a_rank(rank: int, folder: str) -> None:
    """Two steps on this rank's rows of each batch, stepped after and inside the backward pass."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    for inside in (False, True):
        module: Any = network()
        optimizer = make_optimizer([(list(module.parameters()), FAST)], moments="bf16", seed="s")
        with stepping(optimizer, in_backward=inside, proximal_mu=0.1, clip_norm=None) as updates:
            for x, y in data(2):
                rows = slice(0, 5) if rank == 0 else slice(5, 8)
                (loss_of(module)((x[rows], y[rows])) * (3 / 8 if rank else 5 / 8)).backward()
                updates.step()
        save_file(module.state_dict(), Path(folder) / f"{rank}-{inside}.safetensors")
    dist.destroy_process_group()


@pytest.mark.slow
def test_ranks_step_equally_inside_backward(tmp_path: Path) -> None:
    mp.spawn(train_on_a_rank, args=(str(tmp_path),), nprocs=2)
    first, *others = (
        load_file(tmp_path / f"{rank}-{inside}.safetensors") for rank in (0, 1) for inside in (0 > 1, True)
    )
    for other in others:
        assert all(torch.equal(first[name], other[name]) for name in first)
    assert not torch.equal(first["0.weight"], network()[0].weight)
