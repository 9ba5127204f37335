"""Server optimisers: they apply the mean update to the global model, one tensor at a time.

FedAvgM: Hsu et al. 2019 (arXiv 1909.06335), section 4.2. FedAdam and FedYogi: Reddi et al. 2021 (arXiv 2003.00295),
Algorithm 2. A step uses the round's pseudo-gradient delta = mean(theta_n) - theta. Buffers are not stepped.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from lwfed.spec.federation import ServerSpec

State = dict[str, Tensor]
Step = Callable[[Tensor, Tensor, Mapping[str, Tensor]], tuple[Tensor, State]]
"""(theta, mean of clients' theta, previous round's state or empty) -> (new theta, new state)."""


def server_step(spec: ServerSpec) -> Step:
    """Returns the step of a server optimiser.

    Args:
        spec: Its kind and constants.

    Returns:
        A pure function on one tensor; its state starts empty at each stage.
    """
    return {"fedavg": _fedavg, "fedavgm": _fedavgm, "fedadam": _fedadam, "fedyogi": _fedyogi}[spec.kind](spec)


def _fedavg(spec: ServerSpec) -> Step:
    def step(theta: Tensor, mean: Tensor, state: Mapping[str, Tensor]) -> tuple[Tensor, State]:
        if spec.rate == 1.0:
            return mean, {}
        return theta + spec.rate * (mean - theta), {}

    return step


def _fedavgm(spec: ServerSpec) -> Step:
    def step(theta: Tensor, mean: Tensor, state: Mapping[str, Tensor]) -> tuple[Tensor, State]:
        delta = mean - theta
        momentum = spec.momentum * state["momentum"] + delta if state else delta
        return theta + spec.rate * momentum, {"momentum": momentum}

    return step


def _adaptive(spec: ServerSpec, second: Callable[[Tensor, Tensor], Tensor]) -> Step:
    def step(theta: Tensor, mean: Tensor, state: Mapping[str, Tensor]) -> tuple[Tensor, State]:
        delta = mean - theta
        m = state["m"] if state else torch.zeros_like(theta)
        v = state["v"] if state else torch.full_like(theta, spec.tau**2)
        m = spec.beta_1 * m + (1 - spec.beta_1) * delta
        v = second(v, delta.square())
        return theta + spec.rate * m / (v.sqrt() + spec.tau), {"m": m, "v": v}

    return step


def _fedadam(spec: ServerSpec) -> Step:
    return _adaptive(spec, lambda v, square: spec.beta_2 * v + (1 - spec.beta_2) * square)


def _fedyogi(spec: ServerSpec) -> Step:
    return _adaptive(spec, lambda v, square: v - (1 - spec.beta_2) * square * torch.sign(v - square))
