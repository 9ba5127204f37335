"""Seeded initialisation: a unit's initial tensors depend only on its seed and its own shapes.

Encoders are initialised like ViT and BERT: truncated normal weights of standard deviation 0.02, norms one and zero,
biases zero. Heads and fusions are initialised like torch's Linear: uniform within 1 / sqrt(fan in).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from lwfed.types.seeds import as_int


def initial_unit(unit: nn.Module, *, prefix: str, seed: str, std: float | None) -> dict[str, Tensor]:
    """Draws a unit's tensors.

    Args:
        unit: The unit's module; only its shapes and layer types matter, so it may be on the meta device.
        prefix: The unit's name, put before its tensors' names.
        seed: The unit's seed.
        std: Standard deviation of an encoder's weights; None for a head or a fusion.

    Returns:
        Canonical name -> tensor, fp32 (counters int64), on the CPU.
    """
    generator = torch.Generator().manual_seed(as_int(seed))
    meta = unit.state_dict(keep_vars=True)
    tensors: dict[str, Tensor] = {}
    for name in sorted(meta):
        owner_name, _, leaf = name.rpartition(".")
        owner = unit.get_submodule(owner_name)
        tensor = torch.zeros(meta[name].shape, dtype=meta[name].dtype)
        _fill(tensor, owner=owner, leaf=leaf, generator=generator, std=std)
        tensors[f"{prefix}.{name}"] = tensor
    return tensors


def _fill(tensor: Tensor, *, owner: nn.Module, leaf: str, generator: torch.Generator, std: float | None) -> None:
    kind = type(owner).__name__
    if isinstance(owner, nn.modules.batchnorm._BatchNorm) or "Norm" in kind:
        if leaf in ("weight", "running_var"):
            tensor.fill_(1)
    elif "LayerScale" in kind:
        tensor.fill_(owner.init_values)  # type: ignore[arg-type]  # a number in timm
    elif std is None:
        fan_in = getattr(
            owner, "in_features", tensor.shape[-1] if tensor.ndim else 1
        )  # of an `nn.Linear`, or of a module's own parameter
        bound = 1 / math.sqrt(fan_in)
        tensor.uniform_(-bound, bound, generator=generator)
    elif isinstance(owner, nn.Embedding):
        tensor.normal_(std=std, generator=generator)
        if owner.padding_idx is not None:
            tensor[owner.padding_idx] = 0
    elif not leaf.startswith("bias"):
        nn.init.trunc_normal_(tensor, std=std, generator=generator)
