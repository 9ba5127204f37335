"""Whether a device can train a stage: its memory against the stage's peak, which is linear in the batch."""

from __future__ import annotations

from dataclasses import dataclass

from lwfed.cost.stage_cost import StageCost


@dataclass(frozen=True, slots=True)
class Fit:
    """A stage on a device.

    Attributes:
        fits: Whether the device holds the stage at its batch size.
        largest_batch: Largest number of examples per forward pass that fits; 0 if not even two fit.
    """

    fits: bool
    largest_batch: int

    @property
    def verdict(self) -> str:
        """The result in words."""
        if self.fits:
            return f"fits (up to {self.largest_batch} examples per batch)"
        if self.largest_batch:
            return f"too large: lower training.batch_size to {self.largest_batch}, or accumulate gradients"
        return "does not fit at any batch size"


def fit(cost: StageCost, *, device_bytes: int) -> Fit:
    """Returns whether a device can train a stage, and with which batch size.

    Args:
        cost: The stage's cost.
        device_bytes: The device's memory.
    """
    constant = cost.peak_bytes - cost.micro_batch_size * cost.sample_bytes
    largest = max(0, (device_bytes - constant) // cost.sample_bytes) if cost.sample_bytes else cost.micro_batch_size
    return Fit(
        fits=cost.peak_bytes <= device_bytes,
        largest_batch=largest if largest >= 2 else 0,
    )


def link_seconds(cost: StageCost, *, link_mbps: float) -> float:
    """Returns the seconds that a round's transfers take on a client's link, down and then up.

    Args:
        cost: The stage's cost.
        link_mbps: The link's speed in megabits per second.
    """
    return (cost.upload_bytes + cost.download_bytes) * 8 / (link_mbps * 1e6)
