"""Events: what happens while a run goes on, one record for each kind, for whoever shows or counts it.

They decide nothing. Between processes an event travels as a line of JSON, under its `kind`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter

from lwfed.types.records import ClientRecord, RoundRecord, RunRecord, RunSummary, StageRecord
from lwfed.types.section import Section


class RunStarted(Section):
    """A run is prepared, and its work begins or goes on."""

    kind: Literal["run"] = "run"
    record: RunRecord


class Checking(Section):
    """Files of a split are read once, to find those that cannot be read."""

    kind: Literal["checking"] = "checking"
    split: str
    done: int
    total: int


class Warning(Section):
    """Something that a user should know, and that ends nothing."""

    kind: Literal["warning"] = "warning"
    message: str


class StageStarted(Section):
    """A stage begins; `reused` where its work is committed already."""

    kind: Literal["stage_started"] = "stage_started"
    stage: int
    key: str
    rounds: int
    reused: bool


class RoundStarted(Section):
    """A round begins, with these clients."""

    kind: Literal["round_started"] = "round_started"
    stage: int
    round: int
    cohort: tuple[str, ...]


class ClientStarted(Section):
    """A client's task runs.

    Attributes:
        client: Its id.
        step: `train-client`, `evaluate-client` or `inspect-client`.
        attempt: Which try this is, from 1.
        gpus: The machine's GPUs that it may use.
        pod: The pod that it runs in.
        node: The pod's node.
    """

    kind: Literal["client_started"] = "client_started"
    client: str
    step: str = "train-client"
    attempt: int = 1
    gpus: tuple[str, ...] = ()
    pod: str | None = None
    node: str | None = None


class ClientStep(Section):
    """A client has taken a training step."""

    kind: Literal["client_step"] = "client_step"
    client: str
    step: int
    steps: int
    loss: float


class ClientWaiting(Section):
    """A client's task waits for something, such as a GPU."""

    kind: Literal["waiting"] = "waiting"
    client: str
    line: str


class ClientLog(Section):
    """A line that a client's process wrote."""

    kind: Literal["client_log"] = "client_log"
    client: str
    line: str


class ClientDone(Section):
    """A client's training is over: with what it reports, or with why it failed."""

    kind: Literal["client_done"] = "client_done"
    stage: int
    round: int
    client: str
    failed: str | None = None
    metrics: ClientRecord | None = None


class Aggregating(Section):
    """The updates of so many clients are aggregated, and the result is evaluated."""

    kind: Literal["aggregating"] = "aggregating"
    stage: int
    round: int
    clients: int


class OverheadMeasured(Section):
    """Seconds between two rounds' training, and what of them was no work."""

    kind: Literal["overhead"] = "overhead"
    seconds: float
    between_rounds: float


class RoundDone(Section):
    """A round is committed."""

    kind: Literal["round"] = "round"
    record: RoundRecord


class StageDone(Section):
    """A stage is committed."""

    kind: Literal["stage"] = "stage"
    record: StageRecord


class Summarised(Section):
    """All stages are over."""

    kind: Literal["summary"] = "summary"
    record: RunSummary


class RunEnding(Section):
    """A run's end is recorded, with its status and a reason where it failed."""

    kind: Literal["ending"] = "ending"
    run_id: str
    status: str
    reason: str = ""


Event = (
    RunStarted
    | Checking
    | Warning
    | StageStarted
    | RoundStarted
    | ClientStarted
    | ClientStep
    | ClientWaiting
    | ClientLog
    | ClientDone
    | Aggregating
    | OverheadMeasured
    | RoundDone
    | StageDone
    | Summarised
    | RunEnding
)
"""Anything that happens while a run goes on."""

Emit = Callable[[Event], None]
"""Receives events from whoever works."""

_ADAPTER: TypeAdapter[Event] = TypeAdapter(Annotated[Event, Field(discriminator="kind")])


def values_of(event: Event) -> dict[str, Any]:
    """Returns an event as JSON values, without its kind."""
    return event.model_dump(mode="json", exclude_unset=True, exclude={"kind"})


def read_event(kind: str, values: Mapping[str, Any]) -> Event:
    """Reads an event from JSON values.

    Raises:
        pydantic.ValidationError: There is no such kind, or its values are of another form.
    """
    return _ADAPTER.validate_python({**values, "kind": kind})
