"""Records of rounds and of their clients, stored as readable JSON."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field

from lwfed.types.record import Metrics, Record


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
        prefix_read_bytes: Bytes of cached outputs that its steps read.
        prefix_filled: Modality -> number of units that need not run -> number of outputs computed without them.
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
    prefix_read_bytes: int = 0
    prefix_filled: dict[str, dict[str, int]] = Field(default_factory=dict)
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
            `movement/...` if a gate reads it, `fitted/...` and `blend/...` if losses are blended.
        cohort: The sampled clients.
        clients: The accepted clients, with their metrics.
        failed: Client -> why it has no update.
        wall_s: Part -> seconds: `round`, `train`, `aggregate`, `evaluate`, `between_rounds`, `overhead` ...
        failed_evaluations: Client -> why it could not evaluate.
        recomputed_prefixes: Client -> why its frozen blocks' outputs could not be cached.
        lost_residuals: Clients that lost their last upload's residual.
        changed_files: Clients -> number of examples left out because a file changed after its check.
        kept_units: Units that too few clients sent, which therefore stayed as they were.
        head_losses: Client -> head -> its mean losses on a sample of the client's training examples and on those that
            it holds out; only if losses are blended.
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
    kept_units: list[str] = Field(default_factory=list)
    head_losses: dict[str, dict[str, tuple[float, float]]] = Field(default_factory=dict)


class RoundMetrics(Record):
    """The server's evaluation of a round: metrics, and its parts' seconds."""

    metrics: Metrics
    wall_s: dict[str, float] = Field(default_factory=dict)


class ClientMetrics(Record):
    """A client's evaluation on the examples that it holds out."""

    num_examples: int
    metrics: Metrics


class AcceptedUpdate(Record):
    """An accepted update: its digest, w_n, and the client's metrics.

    Attributes:
        digest: Its digest; None: it was never written, but added to the round's sums in memory.
        weight: Its weight in the mean; None: `num_examples`.
        factor: What its weights are multiplied with; None: 1.
    """

    digest: str | None = None
    num_examples: int
    weight: int | None = None
    factor: int | None = None
    metrics: ClientRecord


class Accepted(Record):
    """A round's accepted set; committed before aggregation, or with the result if its updates stayed in memory.

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

    @property
    def in_memory(self) -> bool:
        """Whether its updates stayed in the memory of a process."""
        return any(update.digest is None for update in self.clients.values())


def client_values(clients: Mapping[Any, ClientRecord], name: str) -> list[Any]:
    """Returns the values of one field over all clients that have it, in the clients' order."""
    return [value for client in clients.values() if (value := getattr(client, name)) is not None]
