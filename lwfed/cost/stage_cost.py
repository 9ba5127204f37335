"""The costs of a stage for one client, as a record: totals, and the units' bills that they sum."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from lwfed.cost.bills import UnitBill

PARTS = ("stem", "blocks", "norm", "adapter", "projection", "fusion", "prediction", "temperature")
"""Parts of a model, from input to output."""


@dataclass(frozen=True, slots=True)
class StageCost:
    """The costs of a stage for one client; parameters and bytes are totals, FLOPs are per sample.

    Attributes:
        stage: s; 0 for the end-to-end reference.
        present_params: Parameters of the model.
        trained_params: Parameters that are trained.
        exchanged_params: Parameters sent in each direction per round: the trained ones.
        exchanged_bytes: Bytes sent up per round: one safetensors file per trained unit, buffers and headers included.
        upload_bytes: Equal to `exchanged_bytes`.
        download_bytes: Bytes of trained units fetched per client per round, the mean over the stage's cohorts.
        snapshot_bytes: Bytes fetched in a stage's first round, and after a missed round.
        change_bytes: Bytes fetched in any other round; equal to `snapshot_bytes` if downloads are not encoded.
        frozen_bytes: Bytes of the frozen units' files.
        newly_frozen_bytes: Bytes of those that no earlier trained stage had frozen; a client downloads them once.
        forward_flops: FLOPs per sample.
        backward_flops: FLOPs per sample.
        tokens: Modality -> number of tokens counted with: of texts, with their batch's padding.
        kept_tokens: Modality whose outputs are cached -> number of tokens of an output, without padding.
        weights_bytes: Weights of all present units that are loaded, and of received heads that projections are
            aligned with; frozen blocks with cached outputs are not loaded.
        gradients_bytes: The trained parameters' gradients that are alive at once.
        optimizer_bytes: AdamW's moments of the trained parameters.
        activations_bytes: Activations that autograd saves for a micro-batch.
        peak_bytes: Sum of these four, plus, with FedProx, another copy of the trained parameters.
        batch_size: Examples per step.
        micro_batch_size: Examples per forward pass on one device.
        sample_bytes: Part of `activations_bytes` that each example adds.
        fill_flops: FLOPs per example, over the stage, of frozen blocks whose outputs are cached.
        fill_from: Modality -> number of leading units whose output was cached before -> FLOPs of an output from there.
        cache_bytes: Bytes per example of those outputs on the client's disk at the stage's end.
        read_bytes: Bytes of them that a step reads per sample.
        units: The bill of each unit, from input to output.
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
    kept_tokens: dict[str, int]
    weights_bytes: int
    gradients_bytes: int
    optimizer_bytes: int
    activations_bytes: int
    peak_bytes: int
    batch_size: int
    micro_batch_size: int
    sample_bytes: int
    fill_flops: int
    fill_from: dict[str, dict[str, int]]
    cache_bytes: int
    read_bytes: int
    units: tuple[UnitBill, ...]

    @property
    def flops(self) -> int:
        """FLOPs of a training sample, both passes."""
        return self.forward_flops + self.backward_flops

    def by_part(self) -> dict[str, dict[str, int]]:
        """Splits the totals: part -> params, exchanged_params, forward_flops, backward_flops, saved_bytes."""
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
        """Returns a JSON value: every count, and `parts` instead of the units."""
        values = asdict(self)
        del values["units"]
        return values | {"parts": self.by_part()}
