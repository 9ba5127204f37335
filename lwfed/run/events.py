"""Events: records of what happens during a run, one class per kind, for display and tracking.

They do not affect results. Between processes an event travels as a line of JSON that names its `kind`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter

from lwfed.types.records import RunRecord, RunSummary, StageRecord
from lwfed.types.round_records import ClientRecord, RoundRecord
from lwfed.types.section import Section


class RunStarted(Section):
    """A run is prepared, and its work starts or resumes."""

    kind: Literal["run"] = "run"
    record: RunRecord


class Checking(Section):
    """The files of a split are being checked for unreadable ones."""

    kind: Literal["checking"] = "checking"
    split: str
    done: int
    total: int


class Fetching(Section):
    """Files of the data are being fetched from a bucket, those that this machine does not have yet."""

    kind: Literal["fetching"] = "fetching"
    done: int
    total: int


class Hashing(Section):
    """The contents of the data's files are being hashed, those whose digests are not known yet."""

    kind: Literal["hashing"] = "hashing"
    done: int
    total: int


class Warning(Section):
    """Something that the user should know but that does not stop the run."""

    kind: Literal["warning"] = "warning"
    message: str


class StageStarted(Section):
    """A stage starts; `reused` is set if it is already committed."""

    kind: Literal["stage_started"] = "stage_started"
    stage: int
    key: str
    rounds: int
    reused: bool


class RoundStarted(Section):
    """A round starts, with these clients."""

    kind: Literal["round_started"] = "round_started"
    stage: int
    round: int
    cohort: tuple[str, ...]


class ClientStarted(Section):
    """A client's task has started.

    Attributes:
        client: Its id.
        step: `train-client`, `evaluate-client` or `inspect-client`.
        attempt: Number of this attempt, counted from 1.
        gpus: The machine's GPUs that the task may use.
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
    """A client has completed a training step."""

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
    """A client's training has ended, with its metrics or with the reason why it failed."""

    kind: Literal["client_done"] = "client_done"
    stage: int
    round: int
    client: str
    failed: str | None = None
    metrics: ClientRecord | None = None


class Aggregating(Section):
    """The updates of `clients` clients are being aggregated, and the result evaluated."""

    kind: Literal["aggregating"] = "aggregating"
    stage: int
    round: int
    clients: int


class OverheadMeasured(Section):
    """Seconds between two rounds' training (`between_rounds`), and the part of them that was overhead (`seconds`)."""

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
    """A run's end is being recorded, with its status and, if it failed, the reason."""

    kind: Literal["ending"] = "ending"
    run_id: str
    status: str
    reason: str = ""


Event = (
    RunStarted
    | Checking
    | Fetching
    | Hashing
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
"""Anything that happens during a run."""

Emit = Callable[[Event], None]
"""Receives events."""

_ADAPTER: TypeAdapter[Event] = TypeAdapter(Annotated[Event, Field(discriminator="kind")])


def fetching_reporter(emit: Emit | None) -> Callable[[int, int], None] | None:
    """Returns a callback that emits `Fetching`; None if nobody receives it."""
    return None if emit is None else lambda done, total: emit(Fetching(done=done, total=total))


def values_of(event: Event) -> dict[str, Any]:
    """Returns an event as JSON values, without its kind."""
    return event.model_dump(mode="json", exclude_unset=True, exclude={"kind"})


def read_event(kind: str, values: Mapping[str, Any]) -> Event:
    """Reads an event from JSON values.

    Raises:
        pydantic.ValidationError: There is no such kind, or its values do not fit the kind.
    """
    return _ADAPTER.validate_python({**values, "kind": kind})
