"""Which GPUs of this machine a client gets: those of its slot, so that clients at work at once spread over all."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from lwfed import environment
from lwfed.run.tasks import Device
from lwfed.types.errors import SpecError


def gpus_here(device: Device) -> tuple[str, ...]:
    """Names the GPUs that clients of this process may use, without taking one.

    Args:
        device: What the spec asks for; for `cpu` nobody is asked.

    Returns:
        Numbers, or the names that this process was given itself; none without GPUs.
    """
    return () if device == "cpu" else names_of(torch.cuda.device_count(), named=environment.named_gpus())


def names_of(count: int, *, named: Sequence[str] | None) -> tuple[str, ...]:
    """Names GPUs as a child must be told of them.

    Args:
        count: How many this process sees.
        named: The names it was given; None: it was given none and sees all. What stands behind a name that no GPU has
            is not seen, so the first names count.
    """
    return tuple(str(number) for number in range(count)) if named is None else tuple(named[:count])


def gpus_of(slot: int, *, devices: int, gpus: Sequence[str]) -> tuple[str, ...]:
    """Returns the GPUs of a slot: the next ones after those of the slot before, and from the first again.

    Args:
        slot: k, counted from 0.
        devices: Devices a client, no more than there are GPUs.
        gpus: All of them; none: nothing is said of GPUs.
    """
    return tuple(gpus[(slot * devices + n) % len(gpus)] for n in range(devices)) if gpus else ()


def check_devices(devices: int, *, gpus: Sequence[str]) -> None:
    """Refuses a client of more devices than this machine has GPUs. Raises SpecError."""
    if gpus and devices > len(gpus):
        raise SpecError(
            f"`launch.devices` is {devices} and this process sees {len(gpus)} GPU(s): {', '.join(gpus)}",
            remedy=f"set launch.devices={len(gpus)} or less, or launch.device=cpu",
        )
