"""What travels: bytes of a round's exchange, from types and shapes alone, equal to the byte to what a store sees.

Up: a safetensors file a trained unit, encoded. Down: in a stage's first round, and after a round that a client missed,
the model as it is (a snapshot); else the change that the server published.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import pairwise

from lwfed.plan.cohort import client_ids, sample
from lwfed.plan.stages import StagePlan
from lwfed.types.encoded import Codec, encoded_specs
from lwfed.types.tensors import TensorSpec, layout


def file_bytes(units: Iterable[Mapping[str, TensorSpec]], codec: Codec) -> int:
    """Returns the bytes of some units' files when they travel by a codec, headers and buffers included.

    Args:
        units: For each unit, tensor name -> type and shape.
        codec: How they travel.
    """
    return sum(layout(encoded_specs(specs, codec)).nbytes for specs in units)


def download_bytes(rounds: int, *, snapshot: int, change: int) -> int:
    """Returns the bytes that a client which takes part in every round of a stage fetches of what is trained.

    Args:
        rounds: Rounds of the stage.
        snapshot: Bytes of the model's trained units as they are.
        change: Bytes of a round's published change; those of the snapshot where downloads are not encoded.
    """
    return snapshot + (rounds - 1) * change if rounds else 0


def mean_download_bytes(stage: StagePlan, *, snapshot: int, change: int) -> float:
    """Returns the mean bytes a client and round of a stage, over the very cohorts that its seed draws."""
    if stage.rounds < 2 or snapshot == change:
        return float(snapshot)
    if stage.cohort.fraction_fit == 1:
        return download_bytes(stage.rounds, snapshot=snapshot, change=change) / stage.rounds
    cohorts = [
        set(
            sample(
                stage.round_seed(server_round, "cohort"),
                clients=client_ids(stage.cohort.num_clients),
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
