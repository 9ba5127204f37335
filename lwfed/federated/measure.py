"""Measured costs for the ledger: FLOPs and bytes of one real training step."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Set
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

ATTENTION_ON_CPU = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda *shapes, **_: sdpa_flop_count(*shapes[:3]),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: (
        lambda *shapes, **_: sdpa_backward_flop_count(*shapes[:4])
    ),
}
"""FLOP counts of the CPU's attention kernel, which not every version of torch has."""


class Recomputed(TorchDispatchMode):
    """Measures the activations that a backward pass recomputes, which autograd's hooks do not see.

    Within a backward pass, gradients are enabled only while activations are recomputed. Those still alive when the pass
    returns to computing gradients are counted.

    Args:
        ignored: Addresses of storages that are not activations.
    """

    def __init__(self, ignored: Set[int]) -> None:
        super().__init__()
        self.ignored = ignored
        self.forward = True
        self._made: dict[StorageWeakRef, int] = {}
        self._peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if self.forward:
            return made
        if torch.is_grad_enabled():
            given = {tensor.untyped_storage().data_ptr() for tensor in args if isinstance(tensor, Tensor)}
            for tensor in made if isinstance(made, tuple | list) else (made,):
                storage = tensor.untyped_storage() if isinstance(tensor, Tensor) else None
                if storage is not None and storage.data_ptr() not in given | self.ignored:  # a view is no new tensor
                    self._made[StorageWeakRef(storage)] = storage.nbytes()
        elif self._made:
            self._count()
        return made

    def take(self) -> int:
        """Ends a backward pass. Returns the most bytes that were alive at once."""
        self._count()
        peak, self._peak, self.forward = self._peak, 0, True
        return peak

    def _count(self) -> None:
        self._made = {storage: size for storage, size in self._made.items() if not storage.expired()}
        self._peak = max(self._peak, sum(self._made.values()))


class _Untracked(nullcontext[None]):
    """Replaces the counter's module tracker, so that everything is counted under one name."""

    parents = frozenset({"Global"})


@dataclass(slots=True)
class StepCost:
    """The cost of one training step; filled while the step runs.

    Attributes:
        forward_flops: FLOPs of the whole batch; 1 multiply-add = 2 FLOPs.
        backward_flops: FLOPs of the whole batch.
        activations_bytes: Unique storages that autograd saved for one backward pass, except weights and inputs, plus
            the most that recomputing a block added; the maximum over passes.
        gradients_bytes: Bytes of all gradients.
        optimizer_bytes: Bytes of the optimiser's states.
        device_peak_bytes: The device's own peak, if the device reports it.
    """

    forward_flops: int = 0
    backward_flops: int = 0
    activations_bytes: int = 0
    gradients_bytes: int = 0
    optimizer_bytes: int = 0
    device_peak_bytes: int | None = None
    _counter: FlopCounterMode | None = field(default=None, repr=False)
    _seen: int = 0
    _saved: dict[int, int] = field(default_factory=dict, repr=False)
    _recomputed: Recomputed | None = field(default=None, repr=False)

    def forward_done(self) -> None:
        """Adds what was counted since the last call to the forward pass."""
        self.forward_flops += self._since()
        if self._recomputed is not None:
            self._recomputed.forward = False

    def backward_done(self) -> None:
        """Adds what was counted since the last call to the backward pass, with the bytes that autograd saved for it."""
        self.backward_flops += self._since()
        again = 0 if self._recomputed is None else self._recomputed.take()
        self.activations_bytes = max(self.activations_bytes, sum(self._saved.values()) + again)
        self._saved.clear()

    def _since(self) -> int:
        if self._counter is None:
            return 0
        total = self._counter.get_total_flops()
        count, self._seen = total - self._seen, total
        return count


@contextmanager
def measuring(*, known: Iterable[Tensor], device: torch.device) -> Iterator[StepCost]:
    """Measures the training step in the body.

    Args:
        known: Tensors that are not activations: weights, buffers, inputs.
        device: The device that the step runs on.

    Yields:
        The cost, complete when the body ends.
    """
    ignored = {tensor.untyped_storage().data_ptr() for tensor in known}
    counter = FlopCounterMode(display=False, custom_mapping=ATTENTION_ON_CPU)
    counter.mod_tracker = _Untracked()  # type: ignore[assignment]  # the tracker would keep recomputed tensors alive
    again = Recomputed(ignored)
    cost = StepCost(_counter=counter, _recomputed=again)

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in ignored:
            cost._saved[storage.data_ptr()] = max(cost._saved.get(storage.data_ptr(), 0), storage.nbytes())
        return tensor

    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), counter, again:
        yield cost
    if device.type == "cuda":
        cost.device_peak_bytes = torch.cuda.max_memory_allocated(device)
