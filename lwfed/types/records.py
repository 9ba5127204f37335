"""Records of runs and of their stages, stored as readable JSON."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from lwfed.types.record import Metrics, Record


class Ledger(Record):
    """A stage's predicted and measured costs.

    Attributes:
        predicted: One client's costs, as `lwfed.cost` derives them; None if the run has no prediction.
        measured: Costs measured by clients: bytes per client per round, FLOPs per sample, peak memory.
        kinds: Kind of client (see `StagePlan.kinds`) -> costs measured by these; empty if all are alike.
    """

    predicted: dict[str, Any] | None = None
    measured: dict[str, float] = Field(default_factory=dict)
    kinds: dict[str, dict[str, float]] = Field(default_factory=dict)


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
        start_s: Part of its start -> seconds, to the first training step (`lwfed.run.starting`); empty: not measured.
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
    start_s: dict[str, float] = Field(default_factory=dict)
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
        fitted: Group -> most blocks that its devices can train in each stage, None: it skips the stage; only for groups
            whose memory the spec names.
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
    fitted: dict[str, list[int | None]] = Field(default_factory=dict)
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
