"""Activation checkpointing: a trained block keeps its input alone and is computed again in the backward pass.

Chen et al. 2016, arXiv 1604.06174. The function is the same to the bit: dropout is drawn again from the same state of
the generator, and in the same precision.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

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
    return checkpoint(run, *inputs, use_reentrant=False, preserve_rng_state=True)


def set_recomputed(module: nn.Module, again: bool) -> None:
    """Sets whether the blocks of a model's encoders are computed again in the backward pass.

    Args:
        module: A model of encoders; see `protocol.Encoder.recomputed`.
        again: Whether.

    Raises:
        SpecError: A block has running statistics, which a second pass would move twice.
    """
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
