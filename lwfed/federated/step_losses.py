"""The losses of a client's training, step by step: read without holding up a GPU, and refused when not finite."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from lwfed.types.errors import DivergedError


class StepLosses:
    """Collects the losses of steps. On a GPU each is read one step late, so that reading it does not block.

    Args:
        on_step: Called with (steps done, last loss).
        device: The device that losses are on.

    Attributes:
        values: The losses that have been read, one per step.
    """

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
