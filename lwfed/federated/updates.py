"""When parameters are stepped: all after the backward pass, or each inside it, as soon as its gradient is complete.

Inside the backward pass only one gradient is alive at a time. Both ways give the same bits: a step reads only its own
parameter, and the backward pass reads no parameter whose gradient it has finished.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer

from lwfed import ranks


@runtime_checkable
class Updates(Protocol):
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
    """

    def __init__(
        self, optimizer: Optimizer, parameters: Sequence[Parameter], *, anchor: Mapping[Parameter, Tensor],
        proximal_mu: float, clip_norm: float | None,
    ) -> None:  # fmt: skip
        self.optimizer, self.parameters, self.clip_norm = optimizer, parameters, clip_norm
        self.anchor, self.proximal_mu = anchor, proximal_mu
        self.gradients_bytes = 0

    def step(self) -> None:
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
def updating(
    optimizer: Optimizer, *, in_backward: bool, proximal_mu: float, clip_norm: float | None
) -> Iterator[Updates]:
    """Steps an optimiser's parameters by the gradients that the body computes.

    Args:
        optimizer: A new optimiser of all trained parameters.
        in_backward: Step each parameter inside the backward pass, instead of all after it.
        proximal_mu: FedProx's mu: mu (theta - theta_0) is added to every gradient (Li et al. 2020, Algorithm 2).
        clip_norm: Largest norm of a step's gradient, or None.

    Raises:
        ValueError: `clip_norm` is set inside the backward pass, which never has all gradients.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    anchor = {parameter: parameter.detach().clone() for parameter in parameters} if proximal_mu else {}
    if not in_backward:
        yield AfterBackward(optimizer, parameters, anchor=anchor, proximal_mu=proximal_mu, clip_norm=clip_norm)
        return
    if clip_norm is not None:
        raise ValueError("clip_norm needs all gradients at once, and step_in_backward never has them: use one of them")
    updates = InBackward(optimizer, parameters, anchor=anchor, proximal_mu=proximal_mu)
    try:
        yield updates
    finally:
        for handle in updates.handles:
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
