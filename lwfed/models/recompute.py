"""Activation checkpointing: a trained block keeps its input alone and is computed again in the backward pass.

Chen et al. 2016, arXiv 1604.06174. The function is the same to the bit: dropout is drawn again from the same state of
the generator, and in the same precision. It works as `torch.utils.checkpoint` does without re-entry, which is not used
because it loads PyTorch's compiler: 150 MB, more than it saves a small model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from lwfed.types.errors import SpecError


def through(run: Callable[..., Tensor], *inputs: Tensor | None, again: bool) -> Tensor:
    """Passes inputs through a block, or a part of one.

    Args:
        run: The block.
        inputs: What it takes.
        again: Whether the backward pass computes it again. Without gradients, as in a frozen prefix, nothing is kept
            in any case.

    Returns:
        What the block gives.
    """
    if not again or not torch.is_grad_enabled():
        return run(*inputs)
    return _kept_by_input(run, inputs)


def set_recomputed(module: nn.Module, again: bool) -> None:
    """Sets whether the blocks of a model's encoders are computed again in the backward pass.

    Args:
        module: A model of encoders; see `protocol.Encoder.recomputed`.
        again: Whether.

    Raises:
        SpecError: A block has running statistics, which a second pass would move twice.
    """
    encoder: Any
    for encoder in module.children():
        blocks = getattr(encoder, "blocks", None)
        if not isinstance(blocks, nn.ModuleList):
            continue
        if again and any(name.endswith("running_mean") for name, _ in blocks.named_buffers()):
            raise SpecError(
                "blocks with BatchNorm cannot be computed twice: their running statistics would move twice",
                remedy="set training.activation_checkpointing=false",
            )
        encoder.recomputed = again


def _kept_by_input(run: Callable[..., Tensor], inputs: tuple[Tensor | None, ...]) -> Tensor:
    """Runs a block; of what autograd would keep, it keeps only the place. The first that is asked for brings all."""
    device = next(value.device for value in inputs if value is not None)
    surroundings = _surroundings(device)
    source: Any = _Keep.apply(torch.empty(0, requires_grad=True), *inputs).grad_fn
    places = 0
    found: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> int:
        nonlocal places
        places += 1
        return places - 1

    def unpack(place: int) -> Tensor:
        if place not in found:
            _again(run, source.saved_tensors, surroundings, count=places, found=found)
        return found.pop(place)

    with saved_tensors_hooks(pack, unpack):
        return run(*inputs)


def _again(
    run: Callable[..., Tensor],
    inputs: tuple[Tensor | None, ...],
    surroundings: Callable[[], AbstractContextManager[None]],
    *,
    count: int,
    found: dict[int, Tensor],
) -> None:
    """Computes a block again, up to the last of `count` tensors that autograd keeps of it."""
    seen = 0

    def pack(tensor: Tensor) -> Tensor:
        nonlocal seen
        found[seen] = tensor.detach()
        seen += 1
        if seen == count:
            raise _EnoughError
        return found[seen - 1]

    detached = [None if value is None else value.detach().requires_grad_(value.requires_grad) for value in inputs]
    with suppress(_EnoughError), torch.enable_grad(), surroundings(), saved_tensors_hooks(pack, lambda tensor: tensor):
        run(*detached)


class _EnoughError(Exception):
    """Ends a second pass early."""


class _Keep(torch.autograd.Function):
    """Has autograd keep tensors, so that they are counted and freed as whatever else it keeps."""

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, *inputs: Tensor | None) -> Tensor:
        ctx.save_for_backward(*inputs)
        return anchor.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        raise AssertionError("nothing depends on it")


def _surroundings(device: torch.device) -> Callable[[], AbstractContextManager[None]]:
    """Notes the random generators' states and the precision; returns what comes back to them for a while."""
    state = torch.get_rng_state()
    gpu_state = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
    enabled, dtype = torch.is_autocast_enabled(device.type), torch.get_autocast_dtype(device.type)

    @contextmanager
    def back() -> Iterator[None]:
        forked = torch.random.fork_rng([device] if gpu_state is not None else [])
        with forked, torch.autocast(device.type, dtype=dtype, enabled=enabled):
            torch.set_rng_state(state)
            if gpu_state is not None:
                torch.cuda.set_rng_state(gpu_state, device)
            yield

    return back
