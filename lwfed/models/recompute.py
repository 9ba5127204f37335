"""Activation checkpointing: a trained block saves only its input and is recomputed in the backward pass.

Chen et al. 2016, arXiv 1604.06174. The results are bit-equal: dropout is drawn again from the same generator state, and
in the same precision. It works like `torch.utils.checkpoint` with `use_reentrant=False`, which is not used here because
it loads PyTorch's compiler: 150 MB, more than it would save for a small model. BatchNorm's running statistics, which a
second pass would update again, are put back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks


def recomputing(run: Callable[..., Tensor], *inputs: Tensor | None) -> Tensor:
    """Runs a block so that autograd saves indices instead of tensors; the first access recomputes all tensors.

    Args:
        run: The block, or a part of one.
        inputs: Its inputs.

    Returns:
        The block's output.
    """
    device = next(value.device for value in inputs if value is not None)
    context = _context_of(device)
    source: Any = _SaveInputs.apply(torch.empty(0, requires_grad=True), *inputs).grad_fn
    num_saved = 0
    found: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> int:
        nonlocal num_saved
        num_saved += 1
        return num_saved - 1

    def unpack(index: int) -> Tensor:
        if index not in found:
            _recompute(run, source.saved_tensors, context, count=num_saved, found=found)
        return found.pop(index)

    with saved_tensors_hooks(pack, unpack):
        return run(*inputs)


def set_recomputed(module: nn.Module, recompute: bool) -> None:
    """Sets whether the blocks of a model's encoders are recomputed in the backward pass.

    Args:
        module: A model with encoders; see `protocol.Encoder.recomputed`.
        recompute: Whether to recompute them.

    """
    encoder: Any
    for encoder in module.children():
        if isinstance(getattr(encoder, "blocks", None), nn.ModuleList):
            encoder.recomputed = recompute


def _recompute(
    run: Callable[..., Tensor],
    inputs: tuple[Tensor | None, ...],
    context: Callable[[], AbstractContextManager[None]],
    *,
    count: int,
    found: dict[int, Tensor],
) -> None:
    """Recomputes a block, up to the last of the `count` tensors that autograd needs."""
    seen = 0

    def pack(tensor: Tensor) -> Tensor:
        nonlocal seen
        found[seen] = tensor.detach()
        seen += 1
        if seen == count:
            raise _EnoughError
        return found[seen - 1]

    detached = [None if value is None else value.detach().requires_grad_(value.requires_grad) for value in inputs]
    buffers = {} if not isinstance(run, nn.Module) else {buffer: buffer.clone() for buffer in run.buffers()}
    with suppress(_EnoughError), torch.enable_grad(), context(), saved_tensors_hooks(pack, lambda tensor: tensor):
        run(*detached)
    for buffer, before in buffers.items():
        buffer.copy_(before)  # BatchNorm's statistics count a batch once


class _EnoughError(Exception):
    """Ends the recomputation early."""


class _SaveInputs(torch.autograd.Function):
    """Makes autograd save tensors, so that they are counted and freed like everything else it saves."""

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, *inputs: Tensor | None) -> Tensor:
        ctx.save_for_backward(*inputs)
        return anchor.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        raise AssertionError("no output depends on it")


def _context_of(device: torch.device) -> Callable[[], AbstractContextManager[None]]:
    """Records the random generators' states and the precision; returns a context manager that restores them."""
    state = torch.get_rng_state()
    gpu_state = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
    enabled, dtype = torch.is_autocast_enabled(device.type), torch.get_autocast_dtype(device.type)

    @contextmanager
    def restored() -> Iterator[None]:
        forked = torch.random.fork_rng([device] if gpu_state is not None else [])
        with forked, torch.autocast(device.type, dtype=dtype, enabled=enabled):
            torch.set_rng_state(state)
            if gpu_state is not None:
                torch.cuda.set_rng_state(gpu_state, device)
            yield

    return restored
