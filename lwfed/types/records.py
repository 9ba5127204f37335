"""Records of runs, stages, rounds and clients, stored as readable JSON.

A record written by another version of lwfed can still be read if it lacks optional fields or has additional ones;
additional fields are kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lwfed.types.errors import CheckpointError

Metrics = dict[str, float]


class Record(BaseModel):
    """A JSON object in a store."""

    model_config = ConfigDict(frozen=True, extra="allow", protected_namespaces=())

    @classmethod
    def of(cls, values: Any) -> Self:
        """Validates JSON values. Raises CheckpointError if they do not fit the record."""
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise CheckpointError(
                f"a {cls.__name__} in the store is damaged: {where}: {first['msg']}",
                remedy="restore it from a backup, or train again with --fresh",
            ) from None

    def to_values(self) -> dict[str, Any]:
        """Returns JSON values of the fields that were set, without defaults."""
        return self.model_dump(mode="json", exclude_unset=True)

    def changed(self, **values: Any) -> Self:
        """Returns a copy of the record with the given values."""
        return self.model_copy(update=values)


class StepFlops(Record):
    """FLOPs of a client's first step.

    Attributes:
        forward: FLOPs of its forward pass.
        backward: FLOPs of its backward pass.
        batch: Number of its examples.
    """

    forward: float
    backward: float
    batch: int


class ClientRecord(Record):
    """A client's metrics of a round, as reported with its update.

    Attributes:
        num_examples: w_n.
        steps: Number of optimiser steps.
        loss: Mean loss over all steps.
        loss_first: Loss of the first step, before any parameter changes.
        wall_s: Seconds of training.
        bytes_up: Bytes of tensors sent.
        bytes_down: Bytes of trained tensors received.
        bytes_down_frozen: Bytes of frozen blocks received.
        peak_rss_bytes: The process's peak resident memory.
        step_flops: FLOPs of the first step; None if not measured.
        peak_tensor_bytes: Weights, gradients, optimiser states and activations of the first step.
        activations_bytes: Bytes of activations in the first step.
        gradients_bytes: Bytes of gradients in the first step.
        optimizer_bytes: Bytes of optimiser states in the first step.
        device_peak_bytes: A GPU's peak memory in the first step.
        prefix: Modality -> state of its cached frozen outputs: `kept`, `filled`, or `recomputed: ` and the reason.
        prefix_fill_s: Seconds spent filling the cache.
        prefix_cache_bytes: Bytes of the cache.
        residual: State of the last upload's residual: `fresh`, `used` or `lost`.
        residual_kept: Whether this upload's residual was kept.
        unkept: Why the client keeps nothing between rounds.
        changed_files: Number of its examples left out because a file changed after its check.
        examples: Modality -> number of its training examples that have it; empty if all have every modality.
    """

    num_examples: int
    steps: int
    loss: float
    loss_first: float | None = None
    wall_s: float = 0.0
    bytes_up: int = 0
    bytes_down: int = 0
    bytes_down_frozen: int = 0
    peak_rss_bytes: int | None = None
    step_flops: StepFlops | None = None
    peak_tensor_bytes: int | None = None
    activations_bytes: int | None = None
    gradients_bytes: int | None = None
    optimizer_bytes: int | None = None
    device_peak_bytes: int | None = None
    prefix: dict[str, str] = Field(default_factory=dict)
    prefix_fill_s: float = 0.0
    prefix_cache_bytes: int = 0
    residual: str | None = None
    residual_kept: bool | None = None
    unkept: str | None = None
    changed_files: int = 0
    examples: dict[str, int] = Field(default_factory=dict)


class RoundRecord(Record):
    """A finished round.

    Attributes:
        stage: s.
        round: r, counted from 1 within the stage.
        global_round: Number of the round within the run, counted from 1.
        digest: Digest of its result.
        metrics: Name -> value: `train/loss`, `test/...` if it was evaluated, `federated/...`, `aggregate/...`,
            `movement/...` if a gate reads it.
        cohort: The sampled clients.
        clients: The accepted clients, with their metrics.
        failed: Client -> why it has no update.
        wall_s: Part -> seconds: `round`, `train`, `aggregate`, `evaluate`, `between_rounds`, `overhead` ...
        failed_evaluations: Client -> why it could not evaluate.
        recomputed_prefixes: Client -> why its frozen blocks' outputs could not be cached.
        lost_residuals: Clients that lost their last upload's residual.
        changed_files: Clients -> number of examples left out because a file changed after its check.
    """

    stage: int
    round: int
    global_round: int
    digest: str
    metrics: Metrics
    cohort: list[str] = Field(default_factory=list)
    clients: dict[str, ClientRecord]
    failed: dict[str, str] = Field(default_factory=dict)
    wall_s: dict[str, float] = Field(default_factory=dict)
    failed_evaluations: dict[str, str] = Field(default_factory=dict)
    recomputed_prefixes: dict[str, str] = Field(default_factory=dict)
    lost_residuals: list[str] = Field(default_factory=list)
    changed_files: dict[str, int] = Field(default_factory=dict)


class Ledger(Record):
    """A stage's predicted and measured costs.

    Attributes:
        predicted: One client's costs, as `lwfed.cost` derives them; None if the run has no prediction.
        measured: Costs measured by clients: bytes per client per round, FLOPs per sample, peak memory.
    """

    predicted: dict[str, Any] | None = None
    measured: dict[str, float] = Field(default_factory=dict)


class StageRecord(Record):
    """A finished stage.

    Attributes:
        stage: s.
        key: Its address.
        digest: Digest of its result.
        input_digest: Digest of the checkpoint it started from; empty for the first stage.
        plan_digest: Digest of its plan.
        rounds: Number of rounds.
        result_round: The round that is its result; None: the last.
        last_round: Global number of its last round; None: as in the schedule.
        metrics: Metrics of that round.
        ledger: Its costs.
        wall_s: Wall-clock seconds.
        reused: Whether it was already committed, by this run or another.
    """

    stage: int
    key: str
    digest: str
    input_digest: str = ""
    plan_digest: str | None = None
    rounds: int
    result_round: int | None = None
    last_round: int | None = None
    metrics: Metrics
    ledger: Ledger = Field(default_factory=Ledger)
    wall_s: float
    reused: bool = False


class StageKey(Record):
    """A stage of a run, and its address."""

    stage: int
    key: str


class Parent(Record):
    """The run that a run starts from, and the first stage it trains itself."""

    run_id: str
    stage: int


class DataRecord(Record):
    """The data of a run.

    Attributes:
        source: Name of the source.
        version: Digest of the data's content, wherever it is stored, and of pretrained weights.
        versions: The data's own versions: of `server`, and of each client that has its own folder.
        num_train: Number of all clients' training examples.
        num_test: Number of examples that the server evaluates on.
        num_test_images: Number of their images; None: as many as examples.
        num_validation: Number of examples set apart for validation.
        clients: Client -> number of examples it trains on.
        lacks: Client -> modality -> number of these examples that lack it, if any do.
        classes: Names of the classes; empty if there are no labels.
        class_counts: Number of the clients' training examples of each class; empty unless the objective balances them.
        left_out: What is part of no example, cannot be read, or is of no client that takes part -> how many.
        tokenizers: Modality -> identity of its tokenizer's files.
    """

    source: str
    version: str
    versions: dict[str, str] = Field(default_factory=dict)
    num_train: int
    num_test: int
    num_test_images: int | None = None
    num_validation: int = 0
    clients: dict[str, int] = Field(default_factory=dict)
    lacks: dict[str, dict[str, int]] = Field(default_factory=dict)
    classes: list[str] = Field(default_factory=list)
    class_counts: list[int] = Field(default_factory=list)
    left_out: dict[str, int] = Field(default_factory=dict)
    tokenizers: dict[str, str] = Field(default_factory=dict)


class RunRecord(Record):
    """A run: its spec, and the keys of its stages.

    Attributes:
        run_id: Its id.
        name: Its spec's name.
        created: Time of creation, as ISO 8601 with an offset.
        spec: The complete experiment.
        strategy: `layerwise`, `window` and its number, `progressive` or `end_to_end`.
        stages: The stages that it has started or taken over.
        parent: The run it starts from, or None.
        salt: Makes its keys unique; empty unless it is `--fresh`.
        depths: Modality -> number of blocks of its whole encoder.
        model: The model, with complete encoder settings.
        num_classes: C; None if there are no labels.
        data: Its data.
        code_version: Digest of the code that affects results.
        predicted: Predicted costs of each stage.
        end_to_end: Predicted costs of end-to-end training of the same model.
    """

    run_id: str
    name: str = ""
    created: str = ""
    spec: dict[str, Any]
    strategy: str = ""
    stages: list[StageKey] = Field(default_factory=list)
    parent: Parent | None = None
    salt: str = ""
    depths: dict[str, int] = Field(default_factory=dict)
    model: dict[str, Any] = Field(default_factory=dict)
    num_classes: int | None = None
    data: DataRecord
    code_version: str = ""
    predicted: list[dict[str, Any]] = Field(default_factory=list)
    end_to_end: dict[str, Any] = Field(default_factory=dict)

    @property
    def stage_numbers(self) -> list[int]:
        """Numbers of all stages: those with predicted costs, and those with recorded keys."""
        return sorted({*(int(cost["stage"]) for cost in self.predicted), *(item.stage for item in self.stages)})


class StageSummary(Record):
    """A stage of a summary; see `StageRecord`."""

    stage: int
    digest: str
    rounds: int
    result_round: int | None = None
    metrics: Metrics
    ledger: Ledger = Field(default_factory=Ledger)
    reused: bool = False
    wall_s: float = 0.0


class RoundMetrics(Record):
    """The server's evaluation of a round: metrics, and its parts' seconds."""

    metrics: Metrics
    wall_s: dict[str, float] = Field(default_factory=dict)


class ClientMetrics(Record):
    """A client's evaluation on the examples that it holds out."""

    num_examples: int
    metrics: Metrics


class RunSummary(Record):
    """A run's result; the last line of `lwfed run --json`.

    Attributes:
        run_id: The run.
        status: `finished`, or `partial` if stages remain.
        digest: Digest of its result.
        metrics: Metrics of its last evaluated round.
        ledger: `predicted` and `measured` costs of the whole run.
        stages: Its stages.
        wall_s: Wall-clock seconds.
    """

    run_id: str
    status: str
    digest: str
    metrics: Metrics
    ledger: dict[str, Any]
    stages: list[StageSummary]
    wall_s: float


class AcceptedUpdate(Record):
    """An accepted update: its digest, w_n, and the client's metrics.

    Attributes:
        weight: Its weight in the mean; None: `num_examples`.
    """

    digest: str
    num_examples: int
    weight: int | None = None
    metrics: ClientRecord


class Accepted(Record):
    """A round's accepted set; committed before aggregation.

    Attributes:
        clients: Client -> its update.
        failed: Client -> why it has no update.
        cohort: The sampled clients.
        wall_s: Seconds of training.
    """

    clients: dict[str, AcceptedUpdate]
    failed: dict[str, str] = Field(default_factory=dict)
    cohort: list[str] = Field(default_factory=list)
    wall_s: float = 0.0


def client_values(clients: Mapping[Any, ClientRecord], name: str) -> list[Any]:
    """Returns the values of one field over all clients that have it, in the clients' order."""
    return [value for client in clients.values() if (value := getattr(client, name)) is not None]
