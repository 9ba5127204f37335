"""How a step computes: device, threads, deterministic kernels and precision, restored when the step ends."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from lwfed import cpus, environment
from lwfed.round.memory import reuse_memory
from lwfed.types.errors import OutOfMemoryError, SpecError


def pick_device(name: str) -> torch.device:
    """Returns the device that a task names. Raises SpecError if the machine does not have it."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cuda" and not torch.cuda.is_available():
        named = environment.named_gpus()
        where = f" in CUDA_VISIBLE_DEVICES={','.join(named)}" if named else ""
        raise SpecError(f"`launch.device` is cuda and torch sees no GPU{where}", remedy="set launch.device=auto")
    return torch.device(name)


def autocast_type(precision: str, device: torch.device) -> torch.dtype | None:
    """Returns the mixed-precision type; `auto` is bf16 on a GPU that supports it, otherwise fp32 (None)."""
    if precision == "auto":
        precision = "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "fp32"
    return torch.bfloat16 if precision == "bf16" else None


@contextmanager
def deterministic(*, threads: int | None = None) -> Iterator[None]:
    """Runs the body with deterministic kernels and a fixed number of CPU threads; digests depend on both.

    From the first time on, the process keeps the memory that it frees; see `memory`.

    Args:
        threads: Number of threads; None for work whose digests do not depend on it: torch's own number, but no more
            than the CPUs that this process may use.

    Raises:
        OutOfMemoryError: The device or the host ran out of memory.
    """
    reuse_memory()
    before, was_deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    settings: Any = torch.utils.deterministic
    filling = settings.fill_uninitialized_memory
    try:
        torch.set_num_threads(min(before, cpus.usable()) if threads is None else threads)
        torch.use_deterministic_algorithms(True)
        settings.fill_uninitialized_memory = False  # a debugging aid that costs a pass over each new tensor
        with memory_errors():
            yield
    finally:
        settings.fill_uninitialized_memory = filling
        torch.use_deterministic_algorithms(was_deterministic)
        torch.set_num_threads(before)


@contextmanager
def memory_errors() -> Iterator[None]:
    """Converts torch's and Python's out-of-memory errors into an OutOfMemoryError with a remedy."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        if isinstance(error, OutOfMemoryError):
            raise
        raise OutOfMemoryError(
            f"out of memory: {str(error).splitlines()[0] if str(error) else 'the host has none left'}",
            remedy="lower training.batch_size or raise gradient_accumulation; see `lwfed plan --device-memory`",
        ) from error
