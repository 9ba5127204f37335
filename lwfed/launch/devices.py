"""Assigns this machine's GPUs to slots, so that clients that run at the same time spread over all GPUs."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from lwfed import environment
from lwfed.run.tasks import Device
from lwfed.types.errors import SpecError


def gpus_here(device: Device) -> tuple[str, ...]:
    """Returns the names of the GPUs that clients of this process may use, without initialising one.

    Args:
        device: The spec's device; for `cpu` torch is not queried.

    Returns:
        Numbers, or the names that this process's own environment lists; empty without GPUs.
    """
    return () if device == "cpu" else names_of(torch.cuda.device_count(), named=environment.named_gpus())


def names_of(count: int, *, named: Sequence[str] | None) -> tuple[str, ...]:
    """Returns the names under which a child process must receive GPUs.

    Args:
        count: The number of GPUs that this process sees.
        named: The names that its environment lists; None: it lists none, and the process sees all. A GPU listed after
            an unknown name is not visible, so the first `count` names are the right ones.
    """
    return tuple(str(number) for number in range(count)) if named is None else tuple(named[:count])


def gpus_of(slot: int, *, devices: int, gpus: Sequence[str]) -> tuple[str, ...]:
    """Returns the GPUs of a slot: the next ones after those of the slot before, wrapping around at the last.

    Args:
        slot: k, counted from 0.
        devices: Devices per client, no more than there are GPUs.
        gpus: All GPUs; if empty, the result is empty.
    """
    return tuple(gpus[(slot * devices + n) % len(gpus)] for n in range(devices)) if gpus else ()


def check_devices(devices: int, *, gpus: Sequence[str]) -> None:
    """Raises SpecError if a client needs more devices than this machine has GPUs."""
    if gpus and devices > len(gpus):
        raise SpecError(
            f"`launch.devices` is {devices} and this process sees {len(gpus)} GPU(s): {', '.join(gpus)}",
            remedy=f"set launch.devices={len(gpus)} or less, or launch.device=cpu",
        )
