"""AdamW over the trained parameters in one pass, with its moments in fp32, bf16 or int8.

With fp32 moments it is torch's fused kernel, which reads and writes each number once, the least possible. It steps the
parameters that have a gradient, so it works both after the backward pass and inside it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer

from lwfed.federated.moments import BLOCK, MOMENTS, Moments
from lwfed.federated.rounding import random_bits
from lwfed.plan.stages import Rates
from lwfed.types.seeds import as_int, derive

BETAS = (0.9, 0.999)
EPSILON = 1e-8
PART = {"cpu": 1024 * BLOCK, "cuda": 1 << 24}
"""Number of parameters updated at a time: on a CPU, what a core's cache holds; on a GPU, enough to occupy it."""


def make_optimizer(groups: Sequence[tuple[Sequence[Parameter], Rates]], *, moments: str, seed: str) -> Optimizer:
    """Returns a new AdamW.

    Args:
        groups: Parameters and the rates of each group.
        moments: `fp32`, `bf16` or `int8`.
        seed: Seed of the rounding; the same on all ranks, whose parameters must stay equal.
    """
    settings: list[dict[str, Any]] = [
        {"params": list(members), "lr": rates.learning_rate, "weight_decay": rates.weight_decay}
        for members, rates in groups
        if members
    ]
    if moments == "fp32":
        return torch.optim.AdamW(settings, betas=BETAS, eps=EPSILON, fused=True)
    return CompactAdamW(settings, moments=MOMENTS[moments], seed=seed)


class CompactAdamW(Optimizer):
    """AdamW (Loshchilov & Hutter 2019, arXiv 1711.05101, Algorithm 2) with moments stored in fewer bits.

    A step's arithmetic is fp32 and uses the moments before they are rounded.

    Args:
        params: torch's parameter groups, with `lr` and `weight_decay`.
        moments: Storage format of the moments.
        seed: Seed of the rounding.
    """

    def __init__(self, params: list[dict[str, Any]], *, moments: Moments, seed: str) -> None:
        super().__init__(params, {})
        self.moments = moments
        self.seed = seed

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # nobody passes a closure
        """Steps each parameter that has a gradient."""
        number = 0
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._step(parameter, number, learning_rate=group["lr"], weight_decay=group["weight_decay"])
                number += 1

    def _step(self, parameter: Parameter, number: int, *, learning_rate: float, weight_decay: float) -> None:
        state = self.state[parameter]
        if not state:
            state |= {"step": torch.zeros((), dtype=torch.int64)} | self.moments.empty(
                parameter.numel(), device=parameter.device
            )
        state["step"] += 1
        step = int(state["step"])
        key = (as_int(derive(self.seed, "rounding", number, step)) & 0xFFFFFFFF) - (1 << 31)
        weights, gradient = parameter.view(-1), parameter.grad.reshape(-1)  # type: ignore[union-attr]  # not None here
        for part in _parts(weights.numel(), size=PART.get(weights.device.type, PART["cuda"])):
            first, second = self.moments.read(state, part)
            adamw_(
                weights[part], gradient[part], first=first, second=second, step=step,
                learning_rate=learning_rate, weight_decay=weight_decay,
            )  # fmt: skip
            bits = random_bits(first.numel(), start=part.start, key=key, device=weights.device)
            self.moments.write(state, part, first, second, bits=bits)


def adamw_(
    weights: Tensor, gradient: Tensor, *, first: Tensor, second: Tensor, step: int, learning_rate: float,
    weight_decay: float,
) -> None:  # fmt: skip
    """Applies AdamW's step in place, to the weights and to both moments.

    Args:
        weights: N parameters.
        gradient: Their gradient.
        first: Running mean of gradients.
        second: Running mean of squared gradients.
        step: t, counted from 1.
        learning_rate: The group's learning rate.
        weight_decay: The group's weight decay.
    """
    beta1, beta2 = BETAS
    first.lerp_(gradient, 1 - beta1)
    second.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
    divisor = second.sqrt().mul_(1 / math.sqrt(1 - beta2**step)).add_(EPSILON)
    weights.mul_(1 - learning_rate * weight_decay)
    weights.addcdiv_(first, divisor, value=-learning_rate / (1 - beta1**step))


def _parts(count: int, *, size: int) -> Iterator[slice]:
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))
