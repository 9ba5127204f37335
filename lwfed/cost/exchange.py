"""The bytes of a round's exchange, from types and shapes alone, exactly as a store sees them.

Up: one encoded safetensors file per trained unit. Down: in a stage's first round, and after a round that a client
missed, the whole trained part (a snapshot); otherwise the change that the server published.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import pairwise

from lwfed.plan.cohort import sample
from lwfed.plan.stages import StagePlan
from lwfed.types.encoded import Codec, encoded_specs
from lwfed.types.tensors import TensorSpec, layout


def file_bytes(units: Iterable[Mapping[str, TensorSpec]], codec: Codec) -> int:
    """Returns the bytes of units' files as sent with a codec, headers and buffers included.

    Args:
        units: Tensor name -> type and shape, for each unit.
        codec: The codec they are sent with.
    """
    return sum(layout(encoded_specs(specs, codec)).nbytes for specs in units)


def download_bytes(rounds: int, *, snapshot: int, change: int) -> int:
    """Returns the bytes of trained units that a client fetches if it takes part in every round of a stage.

    Args:
        rounds: Number of rounds of the stage.
        snapshot: Bytes of the model's trained units, not encoded.
        change: Bytes of a round's published change; equal to `snapshot` if downloads are not encoded.
    """
    return snapshot + (rounds - 1) * change if rounds else 0


def mean_download_bytes(stage: StagePlan, *, snapshot: int, change: int) -> float:
    """Returns the mean bytes per client per round of a stage, over the cohorts that its seed samples."""
    if stage.rounds < 2 or snapshot == change:
        return float(snapshot)
    if stage.cohort.fraction_fit == 1:
        return download_bytes(stage.rounds, snapshot=snapshot, change=change) / stage.rounds
    cohorts = [
        set(
            sample(
                stage.round_seed(server_round, "cohort"),
                clients=stage.cohort.clients,
                fraction_fit=stage.cohort.fraction_fit,
                min_fit_clients=stage.cohort.min_fit_clients,
                min_available_clients=stage.cohort.min_available_clients,
            )
        )
        for server_round in range(1, stage.rounds + 1)
    ]
    fetched = sum(len(cohort) for cohort in cohorts)
    changes = sum(len(cohort & before) for before, cohort in pairwise(cohorts))
    return (changes * change + (fetched - changes) * snapshot) / fetched
