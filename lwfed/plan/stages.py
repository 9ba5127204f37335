"""The plan: for each stage, everything that decides its result, complete and readable, and nothing else.

Settings that only decide where or how fast the work is done (launcher, store, data workers, tracking, deadlines) are
left out, so that equal work has equal keys wherever it runs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer

from lwfed.catalog.encoder import encoder_family
from lwfed.plan.cohort import CohortPlan, plan_cohort
from lwfed.plan.groups import Fitted, GroupPlan, Work, plan_groups, union, without_modalities
from lwfed.plan.levers import UNDECIDED, LeversPlan, plan_levers
from lwfed.plan.strategies import select, stage_rounds, window_of
from lwfed.plan.units import depths_by_stage, group_of
from lwfed.spec.base import LATER, Section
from lwfed.spec.data import DataSpec
from lwfed.spec.federation import AggregatorSpec, ExchangeSpec, ServerSpec
from lwfed.spec.model import ModelSpec, NormaliseSpec
from lwfed.spec.run import RunSpec, Strategy
from lwfed.spec.training import EvaluationSpec
from lwfed.types.canonical import digest_of
from lwfed.types.section import without_unused
from lwfed.types.seeds import derive

Lacks = Mapping[str, Sequence[str]]
"""Client -> modalities that its data lack."""


class DataPlan(Section):
    """The data that a stage is trained on, by content and not by location, with the keys that the source adds."""

    model_config = ConfigDict(extra="allow")  # the source's own keys

    source: str
    on_bad_example: str
    augment: bool
    length_buckets: bool
    validation_fraction: float = 0.0
    incomplete: Annotated[Literal["use", "skip", "fail"], LATER] = "use"

    def at(self, *, root: str | None, workers: int) -> DataSpec:
        """Returns the data spec for a machine's data folder and workers."""
        chosen = {key: value for key, value in self.model_dump().items() if value is not None}
        return DataSpec.model_validate({**chosen, "root": root, "workers": workers})


class TrainingPlan(Section):
    """A client's work in a round; its rates are in `StagePlan.rates`."""

    local_epochs: int
    local_steps: int | None
    batch_size: int
    gradient_accumulation: int
    clip_norm: float | None
    precision: Literal["auto", "fp32", "bf16"]
    proximal_mu: float
    threads: int
    moments: Literal["fp32", "bf16", "int8"]
    step_in_backward: bool
    activation_checkpointing: bool


class ImprovementGate(Section):
    """When a stage ends early by its validation data, and as which round; see `lwfed.plan.gates`."""

    metric: str
    patience: int
    min_delta: float
    restore: Literal["best", "last"]


class MovementGate(Section):
    """When a stage ends early by its parameters' movement; see `lwfed.plan.gates`."""

    kind: Literal["movement"]
    threshold: float
    window: int


class Rates(Section):
    """The optimiser's effective settings for a module group."""

    learning_rate: float
    weight_decay: float


class StagePlan(Section):
    """Everything that decides a stage's result.

    Attributes:
        stage: s, counted from 1.
        num_stages: S.
        first_round: Global number of the stage's first round, counted from 1, if no gate ends an earlier stage.
        rounds: Number of rounds, with a gate the most; 0 appends the blocks untrained.
        depth: Modality -> number of blocks present.
        present: Units of the model.
        trained: Units trained and exchanged, in the model's order.
        appended: Units that this stage adds.
        cut: Modality -> number of frozen leading blocks.
        rates: Module group -> effective learning rate and weight decay.
        model: The model; an encoder's `blocks_per_stage` is the number that this stage appends.
        training: Local training.
        aggregators: Wrappers that each update passes before the weighted mean.
        levers: The levers that reduce its costs.
        devices: Devices per client.
        seed: The run's seed, as text.
        gate: What ends it early; None: nothing.
        groups: What clients train that are not alike; then `trained` is what any of them trains, and `cut` the smallest
            of theirs. Empty: all train all of it.
        lacks: Client -> modalities that its data lack; their units are no part of its updates.
    """

    stage: int
    num_stages: int
    strategy: Strategy
    first_round: int
    rounds: int
    depth: dict[str, int]
    present: tuple[str, ...]
    trained: tuple[str, ...]
    appended: tuple[str, ...]
    cut: dict[str, int]
    rates: dict[str, Rates]
    model: ModelSpec
    training: TrainingPlan
    cohort: CohortPlan
    aggregators: tuple[AggregatorSpec, ...] = ()
    server: ServerSpec
    exchange: ExchangeSpec
    levers: LeversPlan
    evaluation: EvaluationSpec
    data: DataPlan
    devices: int
    seed: str
    gate: Annotated[ImprovementGate | MovementGate | None, LATER] = None
    groups: Annotated[tuple[GroupPlan, ...], LATER] = ()
    lacks: Annotated[dict[str, tuple[str, ...]], LATER] = Field(default_factory=dict)

    @model_serializer(mode="wrap")
    def _as_before(self, dump: SerializerFunctionWrapHandler) -> Any:
        return without_unused(self, dump(self))

    @property
    def frozen(self) -> tuple[str, ...]:
        """Units that are present but not trained."""
        trained = set(self.trained)
        return tuple(unit for unit in self.present if unit not in trained)

    @property
    def settled(self) -> bool:
        """Whether a round's updates and their weights are known in advance, if no client fails."""
        return self.cohort.settled and not self.blends_clients

    @property
    def knows_rounds(self) -> bool:
        """Whether it is known in advance which rounds there are and whom each asks, if no client fails."""
        return self.gate is None and self.cohort.settled

    @property
    def blends_clients(self) -> bool:
        """Whether the clients' weights depend on their losses."""
        return self.model.blending is not None and self.model.blending.clients

    def work_of(self, client: str) -> Work:
        """Returns what a client trains: its group's units, without those of modalities that its data lack."""
        group = next((one for one in self.groups if client in one.members), None)
        return self._work(group, lacks=self.lacks.get(client, ()))

    def kinds(self) -> dict[str, Work]:
        """Returns the kinds of clients, such as `weak without audio`, and what they train; empty if all are alike."""
        if not self.groups and not self.lacks:
            return {}
        works = [
            self._work(group, lacks=lacks)
            for group in self.groups or (None,)
            for clients in [self.cohort.clients if group is None else group.clients]
            for lacks in sorted({self.lacks.get(client, ()) for client in clients})
        ]
        return {work.kind: work for work in works}

    def _work(self, group: GroupPlan | None, *, lacks: tuple[str, ...]) -> Work:
        part = self if group is None else group
        return Work(
            group="" if group is None else group.name,
            trained=without_modalities(part.trained, left_out=lacks),
            cut={modality: count for modality, count in part.cut.items() if modality not in lacks},
            lacks=lacks,
        )

    def round_seed(self, server_round: int, *names: str | int) -> str:
        """Derives a seed for one use within a round of this stage."""
        return derive(self.seed, "stage", self.stage, "round", server_round, *names)


def plan_stages(
    spec: RunSpec,
    *,
    depths: Mapping[str, int],
    fitted: Fitted = MappingProxyType({}),
    lacks: Lacks = MappingProxyType({}),
) -> tuple[StagePlan, ...]:
    """Plans the stages of a spec.

    Args:
        spec: The experiment.
        depths: Modality -> number of blocks of its whole encoder.
        fitted: Group -> most blocks that its devices can train in each stage; see `lwfed.cost.groups`.
        lacks: Client -> modalities that its data lack.

    Returns:
        One plan per stage; end_to_end has a single stage.

    Raises:
        SpecError: The stage cuts do not fit the encoders, or a stage has too few clients.
    """
    by_stage = depths_by_stage(spec, depths)
    rounds = stage_rounds(spec.strategy, spec.stages.rounds)
    by_stage = by_stage[-len(rounds) :]  # end_to_end: the whole model at once
    stages = [
        _plan_stage(spec, stage=stage, rounds=rounds, depths=by_stage, fitted=fitted, lacks=lacks)
        for stage in range(1, len(rounds) + 1)
    ]
    decided = zip(stages, plan_levers(spec, stages), strict=True)
    return tuple(stage.model_copy(update={"levers": levers}) for stage, levers in decided)


def _plan_stage(
    spec: RunSpec,
    *,
    stage: int,
    rounds: tuple[int, ...],
    depths: Sequence[Mapping[str, int]],
    fitted: Fitted,
    lacks: Lacks,
) -> StagePlan:
    data, depth = spec.data, depths[stage - 1]
    selection = select(stage, window=window_of(spec), model=spec.model, depths=depths)
    groups = plan_groups(spec, stage, own=selection, depths=depths, fitted=fitted) if rounds[stage - 1] else ()
    if groups:
        selection = union([replace(selection, trained=group.trained, cut=group.cut) for group in groups])
    return StagePlan(
        stage=stage,
        num_stages=len(rounds),
        strategy=spec.strategy,
        first_round=sum(rounds[: stage - 1]) + 1,
        rounds=rounds[stage - 1],
        depth=dict(depth),
        present=selection.present,
        trained=selection.trained,
        appended=selection.appended,
        cut=selection.cut,
        rates={group: _rates(spec, group, stage) for group in sorted({group_of(unit) for unit in selection.trained})},
        model=_model_at(spec.model, stage=stage, depth=depth, only_stage=len(rounds) == 1),
        training=TrainingPlan.model_validate(spec.training.model_dump(include=set(TrainingPlan.model_fields))),
        cohort=plan_cohort(spec.federation, stage, groups=groups),
        aggregators=spec.federation.aggregators,
        server=spec.federation.server,
        exchange=spec.exchange,
        levers=UNDECIDED,
        evaluation=spec.evaluation,
        data=DataPlan(
            source=data.source,
            on_bad_example=data.on_bad_example,
            augment=data.augment,
            length_buckets=data.length_buckets,
            validation_fraction=data.validation_fraction,
            incomplete=data.incomplete,
            **without_unused(data.own, data.model_dump(mode="json", include=set(data.own))),
        ),
        devices=spec.launch.devices,
        seed=str(spec.seed),
        gate=_gate(spec) if rounds[stage - 1] else None,
        groups=groups,
        lacks={client: tuple(found) for client, found in sorted(lacks.items()) if found},
    )


def _gate(spec: RunSpec) -> ImprovementGate | MovementGate | None:
    gate = spec.stages.gate
    if gate is None:
        return None
    if gate.kind == "movement":
        return MovementGate.model_validate(gate.model_dump())
    chosen = gate.model_dump(exclude={"kind"}) | {"metric": gate.metric or spec.validation_metric}
    return ImprovementGate.model_validate(chosen)


def _model_at(model: ModelSpec, *, stage: int, depth: Mapping[str, int], only_stage: bool) -> ModelSpec:
    """Returns the model with all defaults that decide its inputs, and without the blocks that other stages append."""
    encoders = {}
    for m, encoder in model.encoders.items():
        blocks = depth[m] if only_stage else encoder.blocks_at(stage)
        default = encoder_family(encoder.family).normalise
        normalise = encoder.normalise
        if normalise is None and default is not None and encoder.weights is None:
            normalise = NormaliseSpec(mean=default.mean, std=default.std)
        fresh_norm = encoder.fresh_norm and encoder.weights is not None  # without weights every norm is fresh
        encoders[m] = encoder.model_copy(
            update={"blocks_per_stage": blocks, "normalise": normalise, "fresh_norm": fresh_norm}
        )
    return model.model_copy(update={"encoders": encoders})


def _rates(spec: RunSpec, group: str, stage: int) -> Rates:
    training = spec.training
    base = training.learning_rates.get(group, training.learning_rate)
    if isinstance(base, tuple):
        base = base[stage - 1]
    scaling = training.rate_scaling
    return Rates(
        learning_rate=base if scaling is None else base * training.batch_size / scaling.reference_batch,
        weight_decay=training.weight_decays.get(group, 0.0 if group == "temperature" else training.weight_decay),
    )


def learning_rates(stages: Sequence[StagePlan]) -> dict[str, tuple[float | None, ...]]:
    """Returns the learning rates in force: module group -> its rate in each stage, None where it is not trained."""
    groups = sorted({group for stage in stages for group in stage.rates})
    return {
        group: tuple(stage.rates[group].learning_rate if group in stage.rates else None for stage in stages)
        for group in groups
    }


def stage_key(stage: StagePlan, *, input_digest: str, code_version: str, data_version: str) -> str:
    """Returns the address of a stage's work: equal inputs have equal keys, so no work is repeated.

    Args:
        stage: The stage's plan, which includes the seed.
        input_digest: Digest of the checkpoint that it starts from; empty for the first stage.
        code_version: Digest of the code that affects results.
        data_version: Digest of the data and of pretrained weights.

    Returns:
        64 hex digits.
    """
    values = stage.model_dump(mode="json")
    return key_of_values(values, input_digest=input_digest, code_version=code_version, data_version=data_version)


def key_of_values(plan: Mapping[str, Any], *, input_digest: str, code_version: str, data_version: str) -> str:
    """Returns the key of a stage from its plan as stored JSON values; see `stage_key`."""
    return digest_of({"input": input_digest, "plan": plan, "code": code_version, "data": data_version})
