"""One complete, frozen description of an experiment."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from lwfed.catalog.launcher import launcher_kind
from lwfed.catalog.source import data_source
from lwfed.spec.base import Section
from lwfed.spec.data import DataSpec
from lwfed.spec.federation import ExchangeSpec, FederationSpec, LaunchSpec, StoreSpec, TrackingSpec
from lwfed.spec.kubernetes import KubernetesSpec
from lwfed.spec.model import ModelSpec
from lwfed.spec.training import EvaluationSpec, LeversSpec, TrainingSpec

Strategy = Literal["layerwise", "progressive", "end_to_end"]


MOST_ROUNDS = 1_000_000
"""Most rounds of a run."""
MOST_NAME_CHARS = 60
"""Most characters of an experiment's name."""


class StagesSpec(Section):
    """The schedule."""

    rounds: tuple[int, ...] = Field(
        (15, 15, 15, 15, 15, 15), min_length=1, description="rounds of each stage; 0: append its blocks untrained"
    )

    @model_validator(mode="after")
    def _something_to_do(self) -> Self:
        if any(count < 0 for count in self.rounds):
            raise ValueError("`stages.rounds` has a negative number")
        if sum(self.rounds) > MOST_ROUNDS:
            raise ValueError(f"`stages.rounds` are more than {MOST_ROUNDS} in all")
        if not any(self.rounds):
            raise ValueError("`stages.rounds` are all 0: nothing would be trained")
        return self

    @property
    def count(self) -> int:
        """Number S of stages."""
        return len(self.rounds)


class RunSpec(Section):
    """A complete experiment."""

    name: str = Field(
        "experiment",
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$",
        max_length=MOST_NAME_CHARS,
        description="runs are named after it",
    )
    seed: int = Field(0, ge=0, description="all randomness comes from it")
    strategy: Strategy = Field("layerwise", description="what is trained and exchanged at each stage")
    stages: StagesSpec = StagesSpec()
    data: DataSpec = DataSpec()
    model: ModelSpec = ModelSpec()
    training: TrainingSpec = TrainingSpec()
    federation: FederationSpec = FederationSpec()
    exchange: ExchangeSpec = ExchangeSpec()
    levers: LeversSpec = LeversSpec()
    evaluation: EvaluationSpec = EvaluationSpec()
    launch: LaunchSpec = LaunchSpec()
    store: StoreSpec = StoreSpec()
    tracking: TrackingSpec = TrackingSpec()
    kubernetes: KubernetesSpec = KubernetesSpec()

    @model_validator(mode="after")
    def _sections_agree(self) -> Self:
        count = self.stages.count
        for modality, encoder in self.model.encoders.items():
            per_stage = encoder.blocks_per_stage
            where = f"model.encoders.{modality}.blocks_per_stage"
            if isinstance(per_stage, tuple) and len(per_stage) != count:
                raise ValueError(f"`{where}` has {len(per_stage)} entries for {count} stages")
            if any(encoder.blocks_at(s) < 0 for s in range(1, count + 1)) or encoder.blocks_at(1) < 1:
                raise ValueError(f"`{where}`: the first stage needs at least one block, and no number may be negative")
        groups = (*self.model.modalities, "projection", "prediction")
        for where, table in (
            ("learning_rates", self.training.learning_rates),
            ("weight_decays", self.training.weight_decays),
        ):
            for group, value in table.items():
                if group not in groups:
                    raise ValueError(f"`training.{where}` names the group `{group}`; known: {', '.join(groups)}")
                if isinstance(value, tuple) and len(value) != count:
                    raise ValueError(f"`training.{where}.{group}` has {len(value)} entries for {count} stages")
        data = data_source(self.data.source)
        missing = set(self.model.modalities) - data.modalities
        if missing:
            raise ValueError(f"the {self.data.source} data have no {', '.join(sorted(missing))}")
        if self.federation.partition.kind == "local" and self.federation.clients > 1:
            if "{client}" not in (self.data.root or ""):
                raise ValueError(
                    "a local partition needs a folder per client and one for the server's test data: "
                    "put {client} into `data.root`, for example /data/{client}"
                )
        elif "{client}" in (self.data.root or ""):
            raise ValueError("`data.root` has {client}: set `federation.partition.kind` to local")
        launcher_kind(self.launch.kind).check(self)
        if self.model.objective.kind == "supervised" and not data.labels:
            raise ValueError(f"the {self.data.source} data have no class labels: use the contrastive objective")
        micro = self.training.gradient_accumulation * self.launch.devices
        if self.training.batch_size // micro < 2:
            raise ValueError(
                f"`training.batch_size` {self.training.batch_size} over gradient_accumulation x devices = {micro} "
                "leaves fewer than two examples (BatchNorm needs two)"
            )
        return self
