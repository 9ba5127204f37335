"""The measured side of the ledger: FLOPs and bytes of one real training step."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode


@dataclass(slots=True)
class StepCost:
    """What one training step cost; filled while the step runs.

    Attributes:
        forward_flops: Of the whole batch; 1 multiply-add = 2 FLOPs.
        backward_flops: Likewise.
        activations_bytes: Unique storages that autograd kept for one backward pass, weights and inputs apart; the
            most of several passes.
        gradients_bytes: Bytes of all gradients.
        optimizer_bytes: Bytes of the optimiser's states.
        device_peak_bytes: The device's own peak, where it counts.
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

    def forward_done(self) -> None:
        """Books what was counted since the last call as forward."""
        self.forward_flops += self._since()

    def backward_done(self) -> None:
        """Books what was counted since the last call as backward, and what autograd kept for it."""
        self.backward_flops += self._since()
        self.activations_bytes = max(self.activations_bytes, sum(self._saved.values()))
        self._saved.clear()

    def _since(self) -> int:
        if self._counter is None:
            return 0
        total = self._counter.get_total_flops()
        count, self._seen = total - self._seen, total
        return count


@contextmanager
def measuring(*, known: Iterable[Tensor], device: torch.device) -> Iterator[StepCost]:
    """Counts the training step inside.

    Args:
        known: Tensors that are not activations: weights, buffers, inputs.
        device: Where the step runs.

    Yields:
        The cost, complete once the block is left.
    """
    ignored = {tensor.untyped_storage().data_ptr() for tensor in known}
    counter = FlopCounterMode(display=False)
    cost = StepCost(_counter=counter)

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in ignored:
            cost._saved[storage.data_ptr()] = max(cost._saved.get(storage.data_ptr(), 0), storage.nbytes())
        return tensor

    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), counter:
        yield cost
    if device.type == "cuda":
        cost.device_peak_bytes = torch.cuda.max_memory_allocated(device)
