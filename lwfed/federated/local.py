"""Local training: one client's training of the global model in one round.

FedAvg's client update (McMahan et al. 2017, Algorithm 1) with AdamW; with a proximal term it is FedProx's (Li et al.
2020, arXiv 1812.06127, Algorithm 2). The optimiser is new in each round.

Parameters are stepped all together after the backward pass, or each inside it, as soon as its gradient is complete, so
that only one gradient is alive at a time. Both ways give the same bits: a step reads only its own parameter, and the
backward pass reads no parameter whose gradient it has finished.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer

from lwfed import ranks
from lwfed.federated.measure import StepCost, measuring
from lwfed.federated.optimizer import make_optimizer
from lwfed.federated.step_losses import StepLosses
from lwfed.plan.stages import Rates
from lwfed.types.seeds import as_int, derive


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """A part of a batch that fits on the device.

    Attributes:
        value: The loss function's argument.
        share: Its fraction of the batch, in (0, 1].
        rows: Number of its examples on this device.
        name: A description that identifies it in error messages.
        tensors: The tensors in `value`.
    """

    value: Any
    share: float
    rows: int
    name: str
    tensors: tuple[Tensor, ...] = ()


@dataclass(frozen=True, slots=True)
class LocalSettings:
    """Settings of local training.

    Attributes:
        steps: Number of optimiser steps.
        proximal_mu: FedProx's mu.
        clip_norm: Largest gradient norm, or None.
        autocast: Lower precision of the forward pass, or None.
        seed: Seed of dropout and of the rounding of moments.
        moments: Format of AdamW's moments: `fp32`, `bf16` or `int8`.
        step_in_backward: Step each parameter inside the backward pass; a step is then one micro-batch.
    """

    steps: int
    proximal_mu: float
    clip_norm: float | None
    autocast: torch.dtype | None
    seed: str
    moments: str = "fp32"
    step_in_backward: bool = False


@dataclass(frozen=True, slots=True)
class LocalResult:
    """The result of local training.

    Attributes:
        steps: Number of optimiser steps taken.
        loss: Mean loss over all steps.
        loss_first: Loss of the first step, before any parameter changes.
        wall_s: Wall-clock seconds.
        cost: FLOPs and bytes of the first step, if measured.
        first_rows: Number of examples of the first step on this device.
    """

    steps: int
    loss: float
    loss_first: float
    wall_s: float
    cost: StepCost | None
    first_rows: int


def train(
    groups: Sequence[tuple[Sequence[Parameter], Rates]],
    *,
    loss: Callable[[Any], Tensor],
    batches: Iterator[Sequence[MicroBatch]],
    settings: LocalSettings,
    device: torch.device,
    on_step: Callable[[int, float], None] | None = None,
    measure: Sequence[Tensor] | None = None,
) -> LocalResult:
    """Trains parameters in place.

    Args:
        groups: Trained parameters and the rates of each group.
        loss: Micro-batch -> mean loss, a scalar. With several ranks, each returns its share of the mean.
        batches: The micro-batches of each step.
        settings: Settings of the training.
        device: The parameters' device.
        on_step: Called with the number of steps done and the last loss.
        measure: The model's tensors, to measure the first step's FLOPs and bytes; None measures nothing.

    Returns:
        The steps taken, their losses, and the cost.

    Raises:
        DivergedError: A loss is NaN or infinite; the message names the batch.
    """
    optimizer = make_optimizer(groups, moments=settings.moments, seed=settings.seed)
    losses = StepLosses(on_step, device=device)
    first_rows = 0
    cost: StepCost | None = None
    started = time.monotonic()
    steps = stepping(
        optimizer,
        in_backward=settings.step_in_backward,
        proximal_mu=settings.proximal_mu,
        clip_norm=settings.clip_norm,
        counted=measure is not None,
    )
    forked = torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])
    with forked, steps as stepper:
        _seed(as_int(derive(settings.seed, "rank", ranks.rank())), device)
        for step in range(settings.steps):
            micros = next(batches)
            first_rows = first_rows or sum(micro.rows for micro in micros)
            if measure is not None and step == 0:
                inputs = [tensor for micro in micros for tensor in micro.tensors]
                with measuring(known=[*measure, *inputs], device=device) as cost:
                    value = _gradients(micros, loss, settings, device, cost=cost)
            else:
                value = _gradients(micros, loss, settings, device)
            losses.add(value, name=micros[0].name)
            stepper.step()
            if cost is not None and step == 0:
                cost.gradients_bytes, cost.optimizer_bytes = stepper.gradients_bytes, states_bytes(optimizer)
        losses.read()
    return LocalResult(
        steps=len(losses.values),
        loss=math.fsum(losses.values) / len(losses.values),
        loss_first=losses.values[0],
        wall_s=time.monotonic() - started,
        cost=cost,
        first_rows=first_rows,
    )


def _seed(seed: int, device: torch.device) -> None:
    """Seeds the generators that training draws from: a device's own, and the CPU's.

    `torch.manual_seed` also notes a call for a GPU that is not in use, with a stack trace each time.
    """
    if device.type == "cpu":
        torch.default_generator.manual_seed(seed)
    else:
        torch.manual_seed(seed)


def _gradients(
    micros: Sequence[MicroBatch],
    loss: Callable[[Any], Tensor],
    settings: LocalSettings,
    device: torch.device,
    *,
    cost: StepCost | None = None,
) -> Tensor:
    """Accumulates the gradients of a batch's parts. Returns the batch's mean loss, a scalar."""
    total = torch.zeros((), device=device)
    for micro in micros:
        with torch.autocast(device.type, dtype=settings.autocast, enabled=settings.autocast is not None):
            value = loss(micro.value) * micro.share
        if cost is not None:
            cost.forward_done()
        total += ranks.total(value.detach())
        value.backward()
        if cost is not None:
            cost.backward_done()
    return total


@runtime_checkable
class Stepper(Protocol):
    """Applies gradients to parameters.

    Attributes:
        gradients_bytes: Peak bytes of gradients alive at once in the last step.
    """

    gradients_bytes: int

    def step(self) -> None:
        """Ends a step: steps every parameter that has a gradient, and frees all gradients."""


class AfterBackward:
    """Steps all parameters at once, after the backward pass.

    Args:
        optimizer: The parameters' optimiser.
        parameters: The trained parameters.
        anchor: Parameter -> the value that FedProx's term pulls it to; empty without that term.
        proximal_mu: FedProx's mu.
        clip_norm: Largest norm of all gradients together, or None.
        counted: Whether the bytes of gradients are counted.
    """

    def __init__(
        self, optimizer: Optimizer, parameters: Sequence[Parameter], *, anchor: Mapping[Parameter, Tensor],
        proximal_mu: float, clip_norm: float | None, counted: bool = True,
    ) -> None:  # fmt: skip
        self.optimizer, self.parameters, self.clip_norm = optimizer, parameters, clip_norm
        self.anchor, self.proximal_mu, self._counted = anchor, proximal_mu, counted
        self.gradients_bytes = 0

    def step(self) -> None:
        if self._counted:
            self.gradients_bytes = nbytes(parameter.grad for parameter in self.parameters)
        ranks.total_([parameter.grad for parameter in self.parameters if parameter.grad is not None])
        for parameter, origin in self.anchor.items():
            _pull(parameter, origin, proximal_mu=self.proximal_mu)
        if self.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(self.parameters, self.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


class InBackward:
    """Steps each parameter in a hook on its gradient. With several ranks, each gradient is summed on its own, in order.

    Args: see `AfterBackward`.
    """

    def __init__(
        self, optimizer: Optimizer, parameters: Sequence[Parameter], *, anchor: Mapping[Parameter, Tensor],
        proximal_mu: float,
    ) -> None:  # fmt: skip
        self.optimizer, self.anchor, self.proximal_mu = optimizer, anchor, proximal_mu
        self.gradients_bytes = 0
        self._stepped: set[Parameter] = set()
        self._peak = 0
        self.handles = [parameter.register_post_accumulate_grad_hook(self._on_gradient) for parameter in parameters]

    def step(self) -> None:
        self.gradients_bytes, self._peak = self._peak, 0
        self._stepped.clear()

    def _on_gradient(self, parameter: Tensor) -> None:
        assert isinstance(parameter, Parameter) and parameter.grad is not None
        if parameter in self._stepped:
            raise ValueError("step_in_backward frees each gradient at once, but gradient_accumulation must add them up")
        self._stepped.add(parameter)
        self._peak = max(self._peak, nbytes([parameter.grad]))
        ranks.total_([parameter.grad])
        if parameter in self.anchor:
            _pull(parameter, self.anchor[parameter], proximal_mu=self.proximal_mu)
        self.optimizer.step()  # only this parameter has a gradient
        parameter.grad = None


@contextmanager
def stepping(
    optimizer: Optimizer, *, in_backward: bool, proximal_mu: float, clip_norm: float | None, counted: bool = True
) -> Iterator[Stepper]:
    """Steps an optimiser's parameters by the gradients that the body computes.

    Args:
        optimizer: A new optimiser of all trained parameters.
        in_backward: Step each parameter inside the backward pass, instead of all after it.
        proximal_mu: FedProx's mu: mu (theta - theta_0) is added to every gradient (Li et al. 2020, Algorithm 2).
        clip_norm: Largest norm of a step's gradient, or None.
        counted: Whether the bytes of all gradients are counted, if they are alive at once.

    Raises:
        ValueError: `clip_norm` is set inside the backward pass, which never has all gradients.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    anchor = {parameter: parameter.detach().clone() for parameter in parameters} if proximal_mu else {}
    if not in_backward:
        yield AfterBackward(
            optimizer, parameters, anchor=anchor, proximal_mu=proximal_mu, clip_norm=clip_norm, counted=counted
        )
        return
    if clip_norm is not None:
        raise ValueError("clip_norm needs all gradients at once, and step_in_backward never has them: use one of them")
    stepper = InBackward(optimizer, parameters, anchor=anchor, proximal_mu=proximal_mu)
    try:
        yield stepper
    finally:
        for handle in stepper.handles:
            handle.remove()


def nbytes(tensors: Iterable[Tensor | None]) -> int:
    """Returns the bytes of all tensors that are not None."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors if tensor is not None)


def states_bytes(optimizer: Optimizer) -> int:
    """Returns the bytes of an optimiser's states, without step numbers."""
    values = [value for state in optimizer.state.values() for value in state.values()]
    return nbytes(value for value in values if isinstance(value, Tensor) and value.dim())


@torch.no_grad()
def _pull(parameter: Parameter, origin: Tensor, *, proximal_mu: float) -> None:
    """Adds the gradient of mu/2 |theta - theta_0|^2."""
    if parameter.grad is not None:
        parameter.grad.add_(parameter - origin, alpha=proximal_mu)
