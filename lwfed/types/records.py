"""Records: what is written down of a run, a stage, a round and a client's part of it; stored as readable JSON.

A record that another version of lwfed wrote may lack what is optional here and may have more: it can be read all the
same, and what it has more is kept.
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
        """Reads JSON values. Raises CheckpointError where they are of another form."""
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
        """Returns JSON values: what was given, and nothing that was left out."""
        return self.model_dump(mode="json", exclude_unset=True)

    def changed(self, **values: Any) -> Self:
        """Returns the record with other values."""
        return self.model_copy(update=values)


class StepFlops(Record):
    """FLOPs of a client's first step.

    Attributes:
        forward: Of its forward pass.
        backward: Of its backward pass.
        batch: Examples of the step.
    """

    forward: float
    backward: float
    batch: int


class ClientRecord(Record):
    """What a client's update reports of a round.

    Attributes:
        num_examples: w_n.
        steps: Optimiser steps.
        loss: Mean over them.
        loss_first: Of the first, before any change.
        wall_s: Seconds of training.
        bytes_up: Bytes of tensors sent.
        bytes_down: Bytes received of what is trained.
        bytes_down_frozen: Bytes received of frozen blocks.
        peak_rss_bytes: The process's largest resident memory.
        step_flops: FLOPs of the first step; None where it was not measured.
        peak_tensor_bytes: Weights, gradients, optimiser and activations of the first step.
        activations_bytes: Of the first step.
        gradients_bytes: Of the first step.
        optimizer_bytes: Of the first step.
        device_peak_bytes: A GPU's largest memory in the first step.
        prefix: Modality -> what became of its frozen blocks' outputs: `kept`, `filled`, `recomputed: ` and why.
        prefix_fill_s: Seconds that filling them took.
        prefix_cache_bytes: Bytes that they take.
        residual: What became of what the last upload rounded off: `fresh`, `used` or `lost`.
        residual_kept: Whether what this upload rounded off is kept.
        unkept: Why the client keeps nothing from round to round.
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


class RoundRecord(Record):
    """A finished round.

    Attributes:
        stage: s.
        round: r, counted from 1 within the stage.
        global_round: Counted from 1 within the run.
        digest: Of its result.
        metrics: Name -> value: `train/loss`, `test/...` where it was evaluated, `federated/...`, `aggregate/...`.
        cohort: Who was sampled.
        clients: Who was accepted, and what each reports.
        failed: Client -> why it has no update.
        wall_s: Part -> seconds: `round`, `train`, `aggregate`, `evaluate`, `between_rounds`, `overhead` ...
        failed_evaluations: Client -> why it could not evaluate.
        recomputed_prefixes: Client -> why its frozen blocks' outputs could not be kept.
        lost_residuals: Clients that lost what their last upload rounded off.
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


class Ledger(Record):
    """Costs of a stage, side by side.

    Attributes:
        predicted: Of one client, as `lwfed.cost` derives them; None where the run has no prediction.
        measured: What clients measured: bytes per client per round, FLOPs per sample, peak memory.
    """

    predicted: dict[str, Any] | None = None
    measured: dict[str, float] = Field(default_factory=dict)


class StageRecord(Record):
    """A finished stage.

    Attributes:
        stage: s.
        key: Its address.
        digest: Of its result.
        input_digest: Of the checkpoint it started from; empty at the first.
        plan_digest: Of its plan.
        rounds: How many.
        metrics: Of its last round.
        ledger: What it cost.
        wall_s: Seconds.
        reused: Whether the work had been done before, by this run or another.
    """

    stage: int
    key: str
    digest: str
    input_digest: str = ""
    plan_digest: str | None = None
    rounds: int
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
        source: Where they come from.
        version: Digest of what they are, wherever they lie, and of pretrained weights.
        num_train: Training examples of all clients.
        num_test: Examples that the server evaluates on.
        clients: Client -> number of examples it trains on.
        classes: Names of the classes; empty without labels.
    """

    source: str
    version: str
    num_train: int
    num_test: int
    clients: dict[str, int] = Field(default_factory=dict)
    classes: list[str] = Field(default_factory=list)


class RunRecord(Record):
    """A run: its spec, and the keys of its stages.

    Attributes:
        run_id: Its id.
        name: Its spec's name.
        created: When, as ISO 8601 with an offset.
        spec: The experiment, complete.
        strategy: `layerwise`, `progressive` or `end_to_end`.
        stages: The stages that it has begun or taken over.
        parent: The run it starts from; None: from nothing.
        salt: Makes its keys its own; empty unless it is `--fresh`.
        depths: Modality -> number of blocks of its whole encoder.
        model: The model, with encoders described whole.
        num_classes: C; None without labels.
        data: Its data.
        code_version: Digest of the code that decides numbers.
        predicted: Costs of each stage.
        end_to_end: Costs of end-to-end training of the same model.
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
        """Numbers of all stages: those it foresees, and those it has noted keys of so far."""
        return sorted({*(int(cost["stage"]) for cost in self.predicted), *(item.stage for item in self.stages)})


class StageSummary(Record):
    """A stage of a summary; see `StageRecord`."""

    stage: int
    digest: str
    rounds: int
    metrics: Metrics
    ledger: Ledger = Field(default_factory=Ledger)
    reused: bool = False
    wall_s: float = 0.0


class RunSummary(Record):
    """How a run ended; the last line of `lwfed run --json`.

    Attributes:
        run_id: The run.
        status: `finished`, or `partial` where stages are left.
        digest: Of its result.
        metrics: Of its last evaluated round.
        ledger: `predicted` and `measured`, of the whole run.
        stages: Its stages.
        wall_s: Seconds.
    """

    run_id: str
    status: str
    digest: str
    metrics: Metrics
    ledger: dict[str, Any]
    stages: list[StageSummary]
    wall_s: float


class AcceptedUpdate(Record):
    """An update that counts: its digest, w_n, and what the client reports."""

    digest: str
    num_examples: int
    metrics: ClientRecord


class Accepted(Record):
    """Which updates of a round count; committed before they are aggregated.

    Attributes:
        clients: Client -> its update.
        failed: Client -> why it has none.
        cohort: Who was sampled.
        wall_s: Seconds of training.
    """

    clients: dict[str, AcceptedUpdate]
    failed: dict[str, str] = Field(default_factory=dict)
    cohort: list[str] = Field(default_factory=list)
    wall_s: float = 0.0


def client_values(clients: Mapping[Any, ClientRecord], name: str) -> list[Any]:
    """Returns one value of each client that has it, in the order of the clients."""
    return [value for client in clients.values() if (value := getattr(client, name)) is not None]
