"""Laws of server optimisers: against the papers' algorithms in numpy, over several rounds."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
import torch

from lwfed.federated.server import server_step
from lwfed.spec.federation import ServerSpec

Array = npt.NDArray[np.float64]
ROUNDS = 6


def means() -> list[Array]:
    rng = np.random.default_rng(7)
    return [rng.normal(0, 1, (4, 3)) * 10.0 ** rng.integers(-4, 1, (4, 3)) for _ in range(ROUNDS)]


def fedavgm(spec: ServerSpec, theta: Array) -> Array:
    """Hsu et al. 2019, section 4.2: v <- beta v + delta, w <- w + eta v."""
    v = np.zeros_like(theta)
    for mean in means():
        v = spec.momentum * v + (mean - theta)
        theta = theta + spec.rate * v
    return theta


def fedopt(second: Callable[[float, Array, Array], Array]) -> Callable[[ServerSpec, Array], Array]:
    """Reddi et al. 2021, Algorithm 2."""

    def reference(spec: ServerSpec, theta: Array) -> Array:
        m, v = np.zeros_like(theta), np.full_like(theta, spec.tau**2)
        for mean in means():
            delta = mean - theta
            m = spec.beta_1 * m + (1 - spec.beta_1) * delta
            v = second(spec.beta_2, v, delta**2)
            theta = theta + spec.rate * m / (np.sqrt(v) + spec.tau)
        return theta

    return reference


def fedavg(spec: ServerSpec, theta: Array) -> Array:
    for mean in means():
        theta = theta + spec.rate * (mean - theta)
    return theta


REFERENCES = {
    "fedavg": fedavg,
    "fedavgm": fedavgm,
    "fedadam": fedopt(lambda beta, v, square: beta * v + (1 - beta) * square),
    "fedyogi": fedopt(lambda beta, v, square: v - (1 - beta) * square * np.sign(v - square)),
}


def ours(spec: ServerSpec, theta: torch.Tensor) -> torch.Tensor:
    step, state = server_step(spec), dict[str, torch.Tensor]()
    for mean in means():
        theta, state = step(theta, torch.tensor(mean).to(theta.dtype), state)
    return theta


@pytest.mark.parametrize(
    "changes", [{}, {"eta": 0.3}, {"momentum": 0.5, "beta_1": 0.5, "beta_2": 0.9, "tau": 1e-2}, {"tau": 1e-6}]
)
@pytest.mark.parametrize("kind", sorted(REFERENCES))
def test_rounds_follow_the_paper(kind: str, changes: dict[str, float]) -> None:
    spec = ServerSpec.model_validate({"kind": kind, **changes})
    start = np.random.default_rng(1).normal(0, 1, (4, 3))
    expected = REFERENCES[kind](spec, start)
    np.testing.assert_allclose(ours(spec, torch.tensor(start)).numpy(), expected, rtol=1e-12, atol=1e-14)
    single = ours(spec, torch.tensor(start, dtype=torch.float32))
    assert single.dtype == torch.float32
    np.testing.assert_allclose(single.numpy(), expected, rtol=2e-4, atol=2e-5)


def test_rates_in_force() -> None:
    assert {kind: ServerSpec.model_validate({"kind": kind}).rate for kind in REFERENCES} == {
        "fedavg": 1.0, "fedavgm": 1.0, "fedadam": 1e-2, "fedyogi": 1e-2,
    }  # fmt: skip
    assert ServerSpec(kind="fedadam", eta=1.0).rate == 1.0


def test_fedavg_with_a_rate_of_one_is_the_mean_bit_for_bit() -> None:
    generator = torch.Generator().manual_seed(0)
    theta, mean = torch.randn(1000, generator=generator), torch.randn(1000, generator=generator) * 1e-3
    new, state = server_step(ServerSpec())(theta, mean, {})
    assert torch.equal(new, mean) and state == {}


@pytest.mark.parametrize("kind", sorted(REFERENCES))
def test_a_step_changes_none_of_its_inputs(kind: str) -> None:
    step = server_step(ServerSpec.model_validate({"kind": kind, "eta": 0.5}))
    theta, mean = torch.ones(3), torch.zeros(3)
    _, state = step(theta, mean, {})
    kept = {name: tensor.clone() for name, tensor in state.items()}
    step(theta, mean, state)
    assert torch.equal(theta, torch.ones(3)) and torch.equal(mean, torch.zeros(3))
    assert all(torch.equal(state[name], kept[name]) for name in kept)


@pytest.mark.parametrize("kind", ["fedadam", "fedyogi", "fedavgm", "fedavg"])
def test_without_a_change_nothing_moves(kind: str) -> None:
    theta = torch.tensor([1.0, -3.0])
    new, _ = server_step(ServerSpec.model_validate({"kind": kind}))(theta, theta.clone(), {})
    assert torch.equal(new, theta)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("fedavg", [1.0, 2.0, 3.0]),
        ("fedavgm", [1.0, 2.9, 5.61]),  # v = 1, 1.9, 2.71
        ("fedadam", [0.0099005049, 0.0232741149]),  # m = .1, .19; v = .01000099, .0199009801
        ("fedyogi", [0.0099005000, 0.0232408661]),  # the same m; v = .010001, .020001
    ],
)
def test_steps_of_a_constant_change_computed_by_hand(kind: str, expected: list[float]) -> None:
    """The mean is always one above the model: delta = 1; with the papers' beta 0.9, 0.9 and 0.99, tau 1e-3."""
    step = server_step(ServerSpec(kind=kind))  # type: ignore[arg-type]  # one of the four
    theta, state = torch.zeros((), dtype=torch.float64), dict[str, torch.Tensor]()
    for value in expected:
        theta, state = step(theta, theta + 1, state)
        assert float(theta) == pytest.approx(value, rel=1e-7)
