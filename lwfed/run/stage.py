"""A stage, as recorded in the store."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from lwfed.plan.stages import StagePlan


@dataclass(frozen=True)
class Stage:
    """A stage, as recorded in the store.

    Attributes:
        key: Its address.
        plan: Everything that decides its result.
        input_digest: Digest of the checkpoint that it starts from; empty for the first stage.
        num_classes: C, or None if the data have no labels.
        class_counts: Number of all clients' training examples of each class; empty unless the plan balances classes.
            The plan and the data decide it.
        data_version: Version of the data and of pretrained weights.
        data_versions: The data's own versions; see `DataRecord.versions`. Empty for a stage of an old run.
        tokenizers: Modality -> identity of its tokenizer's files.
        sizes: Client -> number of examples it trains on; known to the coordinator.
        first_round: Global number of its first round after the rounds that earlier stages had; None: the plan's.
    """

    key: str
    plan: StagePlan
    input_digest: str
    num_classes: int | None
    data_version: str = ""
    data_versions: Mapping[str, str] = field(default_factory=dict)
    tokenizers: Mapping[str, str] = field(default_factory=dict)
    class_counts: tuple[int, ...] = ()
    sizes: Mapping[str, int] = field(default_factory=dict)
    first_round: int | None = None
