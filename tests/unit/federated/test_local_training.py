"""Laws of a client's training: it is AdamW, FedProx and clipping as written down, and measuring changes nothing."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lwfed.federated.local import LocalResult, LocalSettings, MicroBatch, train
from lwfed.plan.stages import Rates
from lwfed.types.errors import DivergedError

CPU = torch.device("cpu")
RATES = Rates(learning_rate=1e-2, weight_decay=0.1)


def network(*, norm: bool = False, dropout: float = 0.0) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        middle = nn.BatchNorm1d(8) if norm else nn.LayerNorm(8)
        return nn.Sequential(nn.Linear(6, 8), middle, nn.Tanh(), nn.Dropout(dropout), nn.Linear(8, 3))


def data(steps: int, *, size: int = 8, seed: int = 0) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return [
        (torch.randn(size, 6, generator=generator), torch.randint(3, (size,), generator=generator))
        for _ in range(steps)
    ]


def whole(batches: Sequence[tuple[Tensor, Tensor]], *, parts: int = 1) -> Iterator[list[MicroBatch]]:
    for number, (x, y) in enumerate(batches, start=1):
        size = len(x)
        cuts = [slice(size * n // parts, size * (n + 1) // parts) for n in range(parts)]
        yield [
            MicroBatch(
                value=(x[c], y[c]),
                share=(c.stop - c.start) / size,
                rows=c.stop - c.start,
                name=f"batch {number}",
                tensors=(x[c], y[c]),
            )
            for c in cuts
        ]


def loss_of(module: nn.Module) -> Callable[[Any], Tensor]:
    return lambda value: nn.functional.cross_entropy(module(value[0]), value[1])


def settings(steps: int, **changes: Any) -> LocalSettings:
    values = {"steps": steps, "proximal_mu": 0.0, "clip_norm": None, "autocast": None, "seed": "s"}
    return LocalSettings(**(values | changes))


def run(module: nn.Module, batches: Sequence[tuple[Tensor, Tensor]], *, parts: int = 1, measure: Any = None,
        groups: Any = None, **changes: Any) -> LocalResult:  # fmt: skip
    return train(
        groups or [(list(module.parameters()), RATES)],
        loss=loss_of(module),
        batches=whole(batches, parts=parts),
        settings=settings(len(batches), **changes),
        device=CPU,
        measure=measure,
    )


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_training_is_a_plain_loop_of_adamw_bit_for_bit() -> None:
    batches = data(5)
    ours, theirs = network(), network()
    result = run(ours, batches)
    optimizer = torch.optim.AdamW(theirs.parameters(), lr=1e-2, weight_decay=0.1, fused=True)
    losses = []
    for x, y in batches:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(theirs(x), y)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert same(ours, theirs) and not same(ours, network())
    assert result.steps == 5 and result.loss_first == losses[0]
    assert result.loss == pytest.approx(math.fsum(losses) / 5, rel=1e-12)
    assert result.wall_s > 0 and result.cost is None and result.first_rows == 8


def test_adamw_is_the_papers() -> None:
    """Loshchilov & Hutter 2019, Algorithm 2, in numpy, on a quadratic loss."""
    weight = nn.Parameter(torch.tensor([1.0, -2.0, 0.5]))
    goals = [torch.tensor([float(n), 1.0, -1.0]) for n in range(4)]
    train(
        [([weight], Rates(learning_rate=0.05, weight_decay=0.2))],
        loss=lambda goal: (weight - goal).square().sum(),
        batches=iter([[MicroBatch(value=goal, share=1.0, rows=1, name="x")] for goal in goals]),
        settings=settings(4),
        device=CPU,
    )
    theta = np.array([1.0, -2.0, 0.5])
    m, v = np.zeros(3), np.zeros(3)
    for t, goal in enumerate(goals, start=1):
        gradient = 2 * (theta - goal.numpy())
        theta = theta * (1 - 0.05 * 0.2)
        m = 0.9 * m + 0.1 * gradient
        v = 0.999 * v + 0.001 * gradient**2
        theta = theta - 0.05 * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
    np.testing.assert_allclose(weight.detach().numpy(), theta, rtol=1e-5)


def test_groups_have_their_own_rates() -> None:
    module = network()
    before = [parameter.detach().clone() for parameter in module.parameters()]
    members = list(module.parameters())
    still = Rates(learning_rate=1e-12, weight_decay=0.0)
    run(module, data(1), groups=[(members[:2], RATES), (members[2:], still), ([], RATES)])
    moved = [float((a.detach() - b).abs().max()) for a, b in zip(module.parameters(), before, strict=True)]
    assert all(size > 1e-3 for size in moved[:2]) and all(size < 1e-9 for size in moved[2:])


def test_fedprox_adds_the_pull_to_the_global_model() -> None:
    """Li et al. 2020, Algorithm 2: the loss plus mu/2 |w - w_0|^2, here written into the loss by hand."""
    mu, batches = 0.7, data(4)
    ours, theirs = network(), network()
    run(ours, batches, proximal_mu=mu)
    anchor = [parameter.detach().clone() for parameter in theirs.parameters()]
    optimizer = torch.optim.AdamW(theirs.parameters(), lr=1e-2, weight_decay=0.1, fused=True)
    for x, y in batches:
        optimizer.zero_grad()
        pull = sum((p - a).square().sum() for p, a in zip(theirs.parameters(), anchor, strict=True))
        (nn.functional.cross_entropy(theirs(x), y) + mu / 2 * pull).backward()
        optimizer.step()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    free = network()
    run(free, batches)
    assert not same(ours, free)


def test_a_strong_pull_keeps_a_client_near() -> None:
    distances = []
    for mu in (0.0, 1.0, 100.0):
        module, start = network(), network()
        run(module, data(30), proximal_mu=mu)
        pairs = zip(module.parameters(), start.parameters(), strict=True)
        distances.append(float(torch.stack([(a - b).detach().square().sum() for a, b in pairs]).sum()))
    assert distances[0] > 2 * distances[1] > 4 * distances[2]


def test_clipping_bounds_the_norm_of_all_gradients_together() -> None:
    ours, theirs = network(), network()
    batches = data(3)
    run(ours, batches, clip_norm=0.05)
    optimizer = torch.optim.AdamW(theirs.parameters(), lr=1e-2, weight_decay=0.1, fused=True)
    for x, y in batches:
        optimizer.zero_grad()
        nn.functional.cross_entropy(theirs(x), y).backward()
        norm = math.sqrt(sum(float(p.grad.double().square().sum()) for p in theirs.parameters()))  # type: ignore[union-attr]
        assert norm > 0.05, "else nothing is clipped"
        for parameter in theirs.parameters():
            parameter.grad.mul_(0.05 / norm)  # type: ignore[union-attr]
        optimizer.step()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=2e-6)
    loose, free = network(), network()
    run(loose, batches, clip_norm=1e6)
    run(free, batches)
    assert same(loose, free), "a bound that is not reached changes no bit"


@pytest.mark.parametrize("parts", [2, 3, 8])
def test_accumulated_gradients_are_those_of_the_whole_batch(parts: int) -> None:
    """Without BatchNorm; parts need not be equal. One step of plain gradients, read off before AdamW scales them."""
    once, apart = network(), network()
    first = run(once, data(3))
    second = run(apart, data(3), parts=parts)
    assert second.loss == pytest.approx(first.loss, abs=1e-6) and second.steps == first.steps == 3
    gradients = []
    for count in (1, parts):
        module = network()
        for micro in next(whole(data(1), parts=count)):
            (loss_of(module)(micro.value) * micro.share).backward()
        gradients.append([p.grad for p in module.parameters()])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)
    for a, b in zip(once.parameters(), apart.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-4)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("parts", [1, 2])
def test_a_loss_that_is_not_finite_names_its_batch_and_stops(bad: float, parts: int) -> None:
    batches = data(4)
    batches[2][0][-1, 0] = bad
    module = network()
    untouched = network()
    run(untouched, batches[:2], parts=parts)
    with pytest.raises(DivergedError, match=r"the loss is nan at step 3, batch 3") as caught:
        run(module, batches, parts=parts)
    assert "training.learning_rate" in caught.value.remedy and caught.value.exit_code == 14
    assert same(module, untouched), "the bad step is not taken"


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("parts", [1, 2])
def test_measuring_changes_no_bit(norm: bool, parts: int) -> None:
    ours, plain = network(norm=norm, dropout=0.3), network(norm=norm, dropout=0.3)
    measured = run(ours, data(3), parts=parts, measure=[*ours.parameters(), *ours.buffers()])
    unmeasured = run(plain, data(3), parts=parts)
    assert same(ours, plain)
    assert (measured.loss, measured.loss_first) == (unmeasured.loss, unmeasured.loss_first)
    assert measured.cost is not None and unmeasured.cost is None


def test_what_is_measured_is_the_first_step() -> None:
    module = network()
    cost = run(module, data(3), measure=[*module.parameters(), *module.buffers()]).cost
    assert cost is not None
    products = 2 * 8 * (6 * 8 + 8 * 3)
    assert cost.forward_flops == products
    assert cost.backward_flops == 2 * products - 2 * 8 * 6 * 8, "no gradient of the inputs"
    params = sum(p.numel() for p in module.parameters())
    assert (cost.gradients_bytes, cost.optimizer_bytes) == (4 * params, 8 * params)
    halves = run(network(), data(1), parts=2, measure=[]).cost
    wholes = run(network(), data(1), measure=[]).cost
    assert halves is not None and wholes is not None
    assert halves.forward_flops == wholes.forward_flops and halves.backward_flops == wholes.backward_flops
    assert halves.activations_bytes < 0.75 * wholes.activations_bytes, "one part's activations are kept at a time"


def test_dropout_follows_the_seed_and_the_global_generator_is_left_alone() -> None:
    states, results = [], []
    for seed in ("a", "a", "b"):
        module = network(dropout=0.5)
        torch.manual_seed(len(states))  # whatever it was
        before = torch.get_rng_state()
        run(module, data(2), seed=seed)
        assert torch.equal(torch.get_rng_state(), before)
        states.append(module)
        results.append(seed)
    assert same(states[0], states[1]) and not same(states[0], states[2])


def test_each_step_is_reported() -> None:
    told: list[tuple[int, float]] = []
    module = network()
    train(
        [(list(module.parameters()), RATES)], loss=loss_of(module), batches=whole(data(3)), settings=settings(3),
        device=CPU, on_step=lambda step, loss: told.append((step, loss)),
    )  # fmt: skip
    assert [step for step, _ in told] == [1, 2, 3] and all(loss > 0 for _, loss in told)


def test_autocast_computes_in_bf16_and_keeps_weights_in_fp32() -> None:
    seen: list[torch.dtype] = []
    module = network()
    module[4].register_forward_hook(lambda _m, _i, output: seen.append(output.dtype))
    run(module, data(1), autocast=torch.bfloat16)
    assert seen == [torch.bfloat16]
    assert all(p.dtype == torch.float32 for p in module.parameters())
