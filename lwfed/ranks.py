"""The ranks of one client: sums and gathers over its devices, with gradients; no-ops with a single rank.

The convention is that each rank holds a share of the loss and the loss is the sum of the shares. So the gradient of the
loss is the sum over ranks of the gradients that each rank computes, and the backward pass of a sum is a sum.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from jaxtyping import Num
from torch import Tensor

from lwfed.types.errors import LwfedError, OutOfMemoryError, error_of

T = TypeVar("T")


def size() -> int:
    """Returns the number of ranks; 1 if nothing is distributed."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Returns the number of this rank, counted from 0."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def agree(yes: bool) -> bool:
    """Returns the first rank's answer on all ranks, for questions that each might answer differently."""
    if size() == 1:
        return yes
    answer = [yes]
    dist.broadcast_object_list(answer, src=0)
    return answer[0]


def each(work: Callable[[], T]) -> list[T]:
    """Runs a function on every rank and returns all results, in the ranks' order.

    If it fails on some ranks, all ranks raise the error of the first that failed, so that none waits for another.
    """
    if size() == 1:
        return [work()]
    failure: tuple[Any, ...] | None = None
    result: Any = None
    own: Exception | None = None
    try:
        result = work()
    except Exception as error:
        own, failure = error, _describe(error)
    gathered: list[Any] = [None] * size()
    dist.all_gather_object(gathered, (result, failure))
    try:
        for number, (_, reported) in enumerate(gathered):
            if reported is not None:
                raise own if own is not None and number == rank() else _error_of(*reported)
    finally:
        own = None  # breaks the reference cycle between the error and this frame
    return [found for found, _ in gathered]


def total(tensor: Tensor) -> Tensor:
    """Sums a tensor over the ranks; its gradient is summed over them too."""
    return tensor if size() == 1 else _Total.apply(tensor)


def total_(tensors: Sequence[Tensor]) -> None:
    """Sums tensors of one type and device over the ranks, in place and in one message, without gradients."""
    if size() == 1 or not tensors:
        return
    flat = torch.cat([tensor.detach().reshape(-1) for tensor in tensors])
    dist.all_reduce(flat)
    with torch.no_grad():
        for tensor, part in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(part.view_as(tensor))


def gather(tensor: Num[Tensor, " B *rest"]) -> tuple[Num[Tensor, " N *rest"], int]:
    """Gathers rows from all ranks, which may hold different numbers of rows.

    Args:
        tensor: This rank's rows.

    Returns:
        The rows of all ranks in their order, with gradients, and the index of this rank's first row.
    """
    if size() == 1:
        return tensor, 0
    counts = row_counts(tensor)
    return _Gather.apply(tensor, counts), sum(counts[: rank()])


def row_counts(tensor: Tensor) -> list[int]:
    """Returns the number of rows that each rank holds."""
    if size() == 1:
        return [tensor.shape[0]]
    mine = torch.tensor([tensor.shape[0]], device=tensor.device)
    counts = [torch.empty_like(mine) for _ in range(size())]
    dist.all_gather(counts, mine)
    return [int(count) for count in counts]


def _describe(error: Exception) -> tuple[int, int | None, str]:
    """Describes an error for the other ranks: exit code, the system's error number, message."""
    if isinstance(error, LwfedError):
        return error.exit_code, None, str(error)
    if isinstance(error, OSError) and error.errno is not None:
        return LwfedError.exit_code, error.errno, error.strerror or str(error)
    code = OutOfMemoryError.exit_code if isinstance(error, torch.OutOfMemoryError | MemoryError) else 1
    return code, None, f"{type(error).__name__}: {error}"


def _error_of(code: int, number: int | None, message: str) -> Exception:
    return error_of(code, message) if number is None else OSError(number, message)


class _Total(torch.autograd.Function):
    """y = sum over ranks of x; dL/dx = sum over ranks of dL/dy."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        result = tensor.detach().clone(memory_format=torch.contiguous_format)
        dist.all_reduce(result)
        return result

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        result = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(result)
        return result


class _Gather(torch.autograd.Function):
    """y = rows of all ranks; dL/dx = this rank's rows of the sum over ranks of dL/dy."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, counts: list[int]) -> Tensor:
        ctx.counts = counts
        padded = tensor.new_zeros((max(counts), *tensor.shape[1:]))
        padded[: tensor.shape[0]] = tensor.detach()
        parts = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(parts, padded)
        return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        result = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(result)
        first = sum(ctx.counts[: rank()])
        return result[first : first + ctx.counts[rank()]], None
