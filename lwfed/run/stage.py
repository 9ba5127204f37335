"""A stage as it is written down in the store."""

from __future__ import annotations

from dataclasses import dataclass

from lwfed.plan.stages import StagePlan


@dataclass(frozen=True)
class Stage:
    """A stage as it is written down in the store.

    Attributes:
        key: Its address.
        plan: What decides its result.
        input_digest: Digest of the checkpoint it starts from; empty at the first.
        num_classes: C, or None without labels.
        data_version: Version of the data and of pretrained weights.
    """

    key: str
    plan: StagePlan
    input_digest: str
    num_classes: int | None
    data_version: str = ""
