"""Aggregation streams: one tensor of one client in memory at a time, in sorted client order.

Memory does not grow with the number of clients and the result does not depend on the order of arrival.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from lwfed.types.errors import CheckpointError

Reader = Callable[[str], Tensor]
"""Gives a client's tensor of a name."""


def normalise_weights(num_examples: Mapping[str, int]) -> dict[str, int]:
    """Divides clients' weights by their greatest common factor, so that a common factor changes no bit.

    Raises:
        ValueError: A client has no examples.
    """
    empty = [client for client, count in num_examples.items() if count < 1]
    if empty:
        raise ValueError(f"{empty[0]} reports no examples; leave it out of the round")
    factor = math.gcd(*num_examples.values())
    return {client: count // factor for client, count in num_examples.items()}


def weighted_mean(
    name: str, *, readers: Mapping[str, Reader], weights: Mapping[str, int], start: Tensor | None = None
) -> Tensor:
    """Averages one tensor over clients: FedAvg (McMahan et al. 2017, Algorithm 1).

    Floating tensors, parameters and BatchNorm statistics alike, are summed in float64 and rounded once; integer ones
    take the maximum.

    Args:
        name: The tensor.
        readers: Client -> how to read its tensors.
        weights: Client -> w_n, a positive integer.
        start: theta, where clients' tensors are changes; None where they are values.

    Returns:
        sum_n w_n theta_n / sum_n w_n, or theta + sum_n w_n delta_n / sum_n w_n, of the shape and type of the
        clients' tensors.
    """
    total: Tensor | None = None
    dtype: torch.dtype | None = None
    for client in sorted(readers):
        tensor = readers[client](name)
        total, dtype = added(total, tensor, weight=weights[client]), tensor.dtype
    if total is None or dtype is None:
        raise ValueError(f"no client sent {name}; a round needs at least one update")
    return mean_of(total, sum_of_weights=sum(weights[client] for client in readers), dtype=dtype, start=start)


def added(total: Tensor | None, tensor: Tensor, *, weight: int) -> Tensor:
    """Adds a client's tensor to the sum of those before it, in place.

    Args:
        total: float64 of the tensor's shape, or of its own type where that is an integer's; None before the first.
        tensor: theta_n or delta_n.
        weight: w_n.
    """
    if not tensor.is_floating_point():
        return tensor if total is None else torch.maximum(total, tensor)
    if total is None:  # not zero plus the first, which would turn -0 into 0
        return tensor.to(torch.float64, copy=True).mul_(weight)
    return total.add_(tensor, alpha=weight)


def mean_of(total: Tensor, *, sum_of_weights: int, dtype: torch.dtype, start: Tensor | None = None) -> Tensor:
    """Makes a mean of a sum of `added`, which is changed.

    Args:
        total: The sum over clients.
        sum_of_weights: Of the same clients.
        dtype: Type of the clients' tensors.
        start: As in `weighted_mean`.
    """
    if not dtype.is_floating_point:
        return total
    mean = total.div_(sum_of_weights)
    return (mean if start is None else mean.add_(start)).to(dtype)


def check_names(client: str, *, names: set[str], expected: set[str]) -> None:
    """Refuses an update whose tensors are not exactly those of the plan.

    Raises:
        CheckpointError: Names are missing or not expected.
    """
    if names != expected:
        missing, extra = sorted(expected - names), sorted(names - expected)
        what = f"lacks {missing[0]}" if missing else f"has {extra[0]}, which the plan does not name"
        raise CheckpointError(
            f"the update of {client} {what} ({len(missing)} missing, {len(extra)} too many)",
            remedy="run the same lwfed version on all clients",
        )
