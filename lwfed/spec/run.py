"""One complete, frozen description of an experiment."""

from __future__ import annotations

from typing import Literal, Self, get_args

from pydantic import Field, model_validator

from lwfed.catalog.launcher import launcher_kind
from lwfed.catalog.source import data_source
from lwfed.formats import HEADLINES
from lwfed.spec.base import Section
from lwfed.spec.data import DataSpec
from lwfed.spec.federation import ExchangeSpec, FederationSpec, LaunchSpec, StoreSpec, TrackingSpec
from lwfed.spec.gates import GateSpec
from lwfed.spec.kubernetes import KubernetesSpec
from lwfed.spec.model import ModelSpec
from lwfed.spec.training import EvaluationSpec, LeversSpec, TrainingSpec
from lwfed.types.encoded import is_lossless

Strategy = Literal["layerwise", "window", "progressive", "end_to_end"]
STRATEGIES: tuple[str, ...] = get_args(Strategy)

MOST_ROUNDS = 1_000_000
"""Most rounds of a run."""
MOST_NAME_CHARS = 60
"""Most characters of an experiment's name."""


class StagesSpec(Section):
    """The schedule."""

    rounds: tuple[int, ...] = Field(
        (15, 15, 15, 15, 15, 15), min_length=1, description="rounds of each stage; 0: append its blocks untrained"
    )
    window: int = Field(2, ge=1, description="window: number of stages whose blocks are trained, the latest ones")
    gate: GateSpec | None = Field(
        None,
        description="ends stages early, by validation data or by the parameters' movement; `rounds` are the most; "
        "null: no gate",
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
        objective = self.model.objective
        learns_temperature = objective.kind == "contrastive" and objective.learnable_temperature
        groups = (*self.model.modalities, "projection", "prediction", *(["temperature"] if learns_temperature else []))
        for where, table in (
            ("learning_rates", self.training.learning_rates),
            ("weight_decays", self.training.weight_decays),
        ):
            for group, value in table.items():
                if group not in groups:
                    raise ValueError(f"`training.{where}` names the group `{group}`; known: {', '.join(groups)}")
                if isinstance(value, tuple) and len(value) != count:
                    raise ValueError(f"`training.{where}.{group}` has {len(value)} entries for {count} stages")
        self._gate_fits()
        self._blending_fits()
        self._groups_fit()
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
        launcher = launcher_kind(self.launch.kind)
        if self.store.updates == "memory" and not launcher.holds_updates:
            raise ValueError(
                f"`store.updates: memory` keeps updates in the coordinator's process, and `launch.kind: "
                f"{self.launch.kind}` trains clients in others: set store.updates=keep, or launch.kind=in_process"
            )
        launcher.check(self)
        if self.federation.timeout_s is None and not launcher.hears(self):
            raise ValueError(
                f"`federation.round_timeout_s` is auto, and not all clients of `launch.kind: {self.launch.kind}` are "
                "agents, which are heard while they train: set seconds"
            )
        if self.model.objective.kind == "supervised" and not data.labels:
            raise ValueError(f"the {self.data.source} data have no class labels: use the contrastive objective")
        micro = self.training.gradient_accumulation * self.launch.devices
        if self.training.batch_size // micro < 2:
            raise ValueError(
                f"`training.batch_size` {self.training.batch_size} over gradient_accumulation x devices = {micro} "
                "leaves fewer than two examples (BatchNorm needs two)"
            )
        return self

    @property
    def validation_metric(self) -> str:
        """The objective's headline on validation data."""
        names = (headline.removeprefix("test/") for headline in HEADLINES)
        return next(f"validation/{name}" for name in names if self.model.has_metric(name))

    def may_decide(self, metric: str) -> bool:
        """Whether a metric is one of an evaluation on validation data, which alone may decide anything."""
        side, _, name = metric.partition("/")
        return side == "validation" and self.model.has_metric(name)

    @property
    def longest_stage(self) -> int:
        """Most rounds of a stage."""
        rounds = self.stages.rounds
        return sum(rounds) if self.strategy == "end_to_end" else max(rounds)

    def _blending_fits(self) -> None:
        if self.model.blending is None:
            return
        every = self.evaluation.federated_every
        if not every:
            raise ValueError(
                "`model.objective.blending` weighs losses by those on examples that each client holds out -> "
                "set evaluation.holdout_fraction=0.1 and evaluation.federated_every=1"
            )
        if self.longest_stage <= 2 * every:
            raise ValueError(
                "`model.objective.blending` weighs from the second evaluation on: with `evaluation.federated_every` "
                f"{every} no stage has a round after it -> lower it, or raise stages.rounds"
            )

    def _groups_fit(self) -> None:
        federation, modalities = self.federation, self.model.modalities
        for group in federation.groups:
            if self.strategy == "end_to_end" and group.strategy is not None:
                raise ValueError(
                    f"`federation.groups` {group.name}: end_to_end has one stage, so `strategy` says nothing: limit "
                    "what they train by `max_blocks` or `device_memory`"
                )
        if federation.unsent == "keep" and not is_lossless(self.exchange.upload):
            raise ValueError(
                f"`federation.unsent: keep` and `exchange.upload: {self.exchange.upload}` exclude one another: clients "
                "would add the rounding error of a change that was not used"
            )
        for modality in federation.modality_quorum:
            if modality not in modalities:
                raise ValueError(
                    f"`federation.modality_quorum` names {modality!r}; the model has {', '.join(modalities)}"
                )

    def _gate_fits(self) -> None:
        gate = self.stages.gate
        if gate is None:
            return
        if gate.kind == "movement":
            if gate.window > self.longest_stage:
                raise ValueError(
                    f"`stages.gate.window` is {gate.window} rounds, but no stage has more than {self.longest_stage}: "
                    "lower it"
                )
            return
        if gate.metric is not None and not self.may_decide(gate.metric):
            raise ValueError(
                f"`stages.gate.metric` is {gate.metric}, which no evaluation on validation data has: write one such as "
                f"{self.validation_metric}"
            )
        if self.evaluation.every > gate.patience:
            raise ValueError(
                f"`stages.gate.patience` is {gate.patience} rounds, but only every {self.evaluation.every}th is "
                "evaluated: lower `evaluation.every`"
            )
