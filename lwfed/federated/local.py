"""Local training: one client's training of the global model in one round.

FedAvg's client update (McMahan et al. 2017, Algorithm 1) with AdamW; with a proximal term it is FedProx's (Li et al.
2020, arXiv 1812.06127, Algorithm 2). The optimiser is new in each round.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from lwfed import ranks
from lwfed.federated.measure import StepCost, measuring
from lwfed.federated.optimizer import make_optimizer
from lwfed.federated.updates import states_bytes, updating
from lwfed.plan.stages import Rates
from lwfed.types.errors import DivergedError
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
    known: Sequence[Tensor] | None = None,
) -> LocalResult:
    """Trains parameters in place.

    Args:
        groups: Trained parameters and the rates of each group.
        loss: Micro-batch -> mean loss, a scalar. With several ranks, each returns its share of the mean.
        batches: The micro-batches of each step.
        settings: Settings of the training.
        device: The parameters' device.
        on_step: Called with the number of steps done and the last loss.
        known: The model's tensors, for counting the first step's FLOPs and bytes; None counts nothing.

    Returns:
        The steps taken, their losses, and the cost.

    Raises:
        DivergedError: A loss is NaN or infinite; the message names the batch.
    """
    optimizer = make_optimizer(groups, moments=settings.moments, seed=settings.seed)
    losses = _Losses(on_step, device=device)
    first_rows = 0
    cost: StepCost | None = None
    started = time.monotonic()
    stepping = updating(
        optimizer,
        in_backward=settings.step_in_backward,
        proximal_mu=settings.proximal_mu,
        clip_norm=settings.clip_norm,
    )
    forked = torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])
    with forked, stepping as updates:
        torch.manual_seed(as_int(derive(settings.seed, "rank", ranks.rank())))
        for step in range(settings.steps):
            micros = next(batches)
            first_rows = first_rows or sum(micro.rows for micro in micros)
            if known is not None and step == 0:
                inputs = [tensor for micro in micros for tensor in micro.tensors]
                with measuring(known=[*known, *inputs], device=device) as cost:
                    value = _gradients(micros, loss, settings, device, cost=cost)
            else:
                value = _gradients(micros, loss, settings, device)
            losses.add(value, name=micros[0].name)
            updates.step()
            if cost is not None and step == 0:
                cost.gradients_bytes, cost.optimizer_bytes = updates.gradients_bytes, states_bytes(optimizer)
        losses.read()
    return LocalResult(
        steps=len(losses.values),
        loss=math.fsum(losses.values) / len(losses.values),
        loss_first=losses.values[0],
        wall_s=time.monotonic() - started,
        cost=cost,
        first_rows=first_rows,
    )


class _Losses:
    """Collects the losses of steps. On a GPU each is read one step late, so that reading it does not block."""

    def __init__(self, on_step: Callable[[int, float], None] | None, *, device: torch.device) -> None:
        self.values: list[float] = []
        self._on_step, self._late = on_step, device.type == "cuda"
        self._unread: tuple[Tensor, torch.cuda.Event, str] | None = None

    def add(self, value: Tensor, *, name: str) -> None:
        """Adds a step's loss, before the step itself. Raises DivergedError if a loss is NaN or infinite."""
        if not self._late:
            self._note(float(value), name)
            return
        copied = torch.empty((), dtype=value.dtype, pin_memory=True).copy_(value, non_blocking=True)
        event = torch.cuda.Event()
        event.record()
        self.read()
        self._unread = copied, event, name

    def read(self) -> None:
        """Reads the loss that is not read yet, if any."""
        if self._unread is not None:
            copied, event, name = self._unread
            self._unread = None
            event.synchronize()
            self._note(float(copied), name)

    def _note(self, value: float, name: str) -> None:
        if not math.isfinite(value):
            raise DivergedError(
                f"the loss is {value} at step {len(self.values) + 1}, {name}",
                remedy="lower training.learning_rate, set training.clip_norm, or look at these examples",
            )
        self.values.append(value)
        if self._on_step is not None:
            self._on_step(len(self.values), value)


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
