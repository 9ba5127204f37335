"""What a stage costs one client, as a record: its totals, and the units' bills that they are made of."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from lwfed.cost.bills import UnitBill

PARTS = ("stem", "blocks", "norm", "projection", "fusion", "prediction")
"""Parts of a model, in the order data passes them."""


@dataclass(frozen=True, slots=True)
class StageCost:
    """What a stage costs one client; parameters and bytes are counts, FLOPs are a sample.

    Attributes:
        stage: s; 0 for the end-to-end reference.
        present_params: Parameters of the model.
        trained_params: Parameters that are trained.
        exchanged_params: Parameters sent each way, each round: those trained.
        exchanged_bytes: Bytes sent up each round: a safetensors file a trained unit, buffers and headers too.
        upload_bytes: The same.
        download_bytes: Bytes of trained units fetched, a client and round, the mean over the stage's cohorts.
        snapshot_bytes: Those fetched in a stage's first round, and after a round missed.
        change_bytes: Those fetched in any other round; `snapshot_bytes` where downloads are not encoded.
        frozen_bytes: Bytes of the files of the frozen units.
        newly_frozen_bytes: Those that no earlier trained stage had frozen: a client downloads them once.
        forward_flops: A sample.
        backward_flops: A sample.
        tokens: Modality -> tokens counted with.
        weights_bytes: Weights of all that is present; frozen blocks whose outputs are kept are not loaded.
        gradients_bytes: Gradients of what is trained, as far as they are alive at once.
        optimizer_bytes: AdamW's moments of what is trained.
        activations_bytes: What autograd keeps for a micro-batch.
        peak_bytes: Sum of the four, and with FedProx another copy of what is trained.
        batch_size: Examples a step.
        micro_batch_size: Examples a forward pass on one device.
        sample_bytes: Part of `activations_bytes` that each example adds.
        fill_flops: An example, once: frozen blocks whose outputs are kept.
        cache_bytes: An example: those outputs on the client's disk, texts as long as they may be.
        units: The bill of each unit, in the order data passes them.
    """

    stage: int
    present_params: int
    trained_params: int
    exchanged_params: int
    exchanged_bytes: int
    upload_bytes: int
    download_bytes: float
    snapshot_bytes: int
    change_bytes: int
    frozen_bytes: int
    newly_frozen_bytes: int
    forward_flops: int
    backward_flops: int
    tokens: dict[str, int]
    weights_bytes: int
    gradients_bytes: int
    optimizer_bytes: int
    activations_bytes: int
    peak_bytes: int
    batch_size: int
    micro_batch_size: int
    sample_bytes: int
    fill_flops: int
    cache_bytes: int
    units: tuple[UnitBill, ...]

    @property
    def flops(self) -> int:
        """FLOPs of a training sample, both passes."""
        return self.forward_flops + self.backward_flops

    def by_part(self) -> dict[str, dict[str, int]]:
        """Explains the totals: part -> params, exchanged_params, forward_flops, backward_flops, saved_bytes."""
        return {
            part: {
                "params": sum(bill.params for bill in bills),
                "exchanged_params": sum(bill.params for bill in bills if bill.trained),
                "forward_flops": sum(bill.forward_flops for bill in bills),
                "backward_flops": sum(bill.backward_flops for bill in bills),
                "saved_bytes": sum(bill.saved_bytes for bill in bills),
            }
            for part in PARTS
            if (bills := [bill for bill in self.units if bill.part == part])
        }

    def to_values(self) -> dict[str, Any]:
        """Returns a JSON value: every count, and `parts` in place of the units."""
        values = asdict(self)
        del values["units"]
        return values | {"parts": self.by_part()}
