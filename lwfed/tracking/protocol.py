"""Trackers receive records that are already committed, so a slow, failing or absent tracker changes no result."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from lwfed.formats import finite as finite

Record = Mapping[str, Any]
"""A JSON object: a RunRecord, RoundRecord or StageRecord."""

PARAM_CHARS = 500
"""Longest value of a parameter in characters; some MLflow servers accept no more."""


class Tracker(Protocol):
    """Records a run. No method raises because a server is down, and only `close` waits for one."""

    def start(self, run: Record) -> None:
        """Records a run's start; a resumed run starts again under the same `run_id`."""

    def round(self, record: Record) -> None:
        """Records a RoundRecord; the same one is not logged twice."""

    def stage(self, record: Record) -> None:
        """Records a finished stage's StageRecord."""

    def finish(self, summary: Record, *, artifacts: Sequence[Path] = (), model: Record | None = None) -> None:
        """Records the run's end: its summary, files and folders to keep, and the model to register."""

    def fail(self, reason: str, *, cancelled: bool = False, closing: bool = False) -> None:
        """Records why the run ended early.

        Args:
            reason: The reason in one line.
            cancelled: Whether somebody ended it on purpose.
            closing: Whether the caller only closes a run that others left open; a later attempt may end differently.
        """

    def close(self, timeout: float = 60.0) -> None:
        """Waits at most `timeout` seconds until all records are logged, and releases resources."""


class Follower(Protocol):
    """Receives the events of a run's log; as a tracker, it neither raises nor waits because a server is down."""

    def send(self, event: Record) -> None:
        """Receives an event, a JSON object with the key `event`; the first event is a start."""

    def close(self, timeout: float = 60.0) -> None:
        """See `Tracker.close`."""


def dispatch(tracker: Tracker, event: Record) -> None:
    """Calls a tracker's method for an event.

    Args:
        tracker: The tracker.
        event: A JSON object as returned by `event_*`; unknown kinds are ignored.
    """
    kind = event.get("event")
    if kind == "start":
        tracker.start(event["record"])
    elif kind == "round":
        tracker.round(event["record"])
    elif kind == "stage":
        tracker.stage(event["record"])
    elif kind == "finish":
        artifacts = [Path(path) for path in event.get("artifacts", ())]
        tracker.finish(event["record"], artifacts=artifacts, model=event.get("model"))
    elif kind == "fail":
        marks = {name: bool(event.get(name)) for name in ("cancelled", "closing")}
        tracker.fail(event["reason"], **marks)


def event_of(kind: str, record: Record) -> dict[str, Any]:
    """Returns the event of a start, round or stage."""
    return {"event": kind, "record": record}


def event_of_finish(summary: Record, *, artifacts: Sequence[Path], model: Record | None) -> dict[str, Any]:
    """Returns the event of a run's end."""
    paths = [str(path.absolute()) for path in artifacts]
    return {"event": "finish", "record": summary, "artifacts": paths, "model": model}


def event_of_failure(reason: str, *, cancelled: bool = False, closing: bool = False) -> dict[str, Any]:
    """Returns the event of a run that ended early."""
    marks = {name: True for name, holds in (("cancelled", cancelled), ("closing", closing)) if holds}
    return {"event": "fail", "reason": reason, **marks}


def stage_numbers(run: Record) -> list[int]:
    """Returns the numbers of all stages of a run: of the predicted ones, and of those whose keys it has recorded."""
    known = [*(run.get("predicted") or ()), *(run.get("stages") or ())]
    return sorted({int(stage["stage"]) for stage in known})


def flatten(record: Record) -> dict[str, float]:
    """Converts a RoundRecord into the metrics of its global round.

    Args:
        record: A RoundRecord.

    Returns:
        Metric name -> value: the round's own `metrics`; `clients/*`: how many took part, and the spread of their
        losses; `bytes/*`: all clients' traffic; `memory/*`: the largest peak of any client; `flops/*`: FLOPs per step,
        the largest of any client; `wall_s/*`. Values that are missing, NaN or infinite are left out.
    """
    clients = [dict(client) for client in (record.get("clients") or {}).values()]
    metrics: dict[str, Any] = dict(record.get("metrics") or {})
    metrics["stage"] = record["stage"]
    metrics["clients/sampled"] = len(record.get("cohort") or ())
    metrics["clients/accepted"] = len(clients)
    metrics["clients/failed"] = len(record.get("failed") or ())
    if record.get("failed_evaluations"):
        metrics["clients/failed_evaluations"] = len(record["failed_evaluations"])
    losses = _numbers(clients, "loss")
    if losses:
        metrics["clients/loss_min"] = min(losses)
        metrics["clients/loss_max"] = max(losses)
        metrics["clients/loss_std"] = statistics.pstdev(losses)
    for key, name, reduce in (
        ("num_examples", "clients/num_examples", sum),
        ("bytes_up", "bytes/up", sum),
        ("bytes_down", "bytes/down", sum),
        ("bytes_down_frozen", "bytes/down_frozen", sum),
        ("peak_tensor_bytes", "memory/peak_tensor_bytes", max),
        ("peak_rss_bytes", "memory/peak_rss_bytes", max),
    ):
        values = _numbers(clients, key)
        if values:
            metrics[name] = reduce(values)
    for key in ("forward", "backward"):
        values = _numbers([client.get("step_flops") or {} for client in clients], key)
        if values:
            metrics[f"flops/step_{key}"] = max(values)
    for key, value in (record.get("wall_s") or {}).items():
        metrics[f"wall_s/{key}"] = value
    return {name: float(value) for name, value in metrics.items() if finite(value)}


def flatten_params(values: Any, *, prefix: str = "") -> dict[str, str]:
    """Converts nested values into dotted names and short texts.

    Args:
        values: JSON values; a list of plain values becomes one text.
        prefix: Prefix of each name.

    Returns:
        Name -> text of at most `PARAM_CHARS` characters.
    """
    return {prefix + name: _short(value) for name, value in _leaves(values, "")}


def _numbers(items: Sequence[Mapping[str, Any]], key: str) -> list[float]:
    return [item[key] for item in items if finite(item.get(key))]


def _leaves(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        for key, item in value.items():
            yield from _leaves(item, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list | tuple) and any(isinstance(item, Mapping) for item in value):
        for index, item in enumerate(value):
            yield from _leaves(item, f"{name}.{index}")
    else:
        yield name, value


def _short(value: Any) -> str:
    if value is None:
        text = "null"
    elif isinstance(value, list | tuple):
        text = ", ".join(str(item) for item in value)
    else:
        text = str(value).lower() if isinstance(value, bool) else str(value)
    return text if len(text) <= PARAM_CHARS else text[: PARAM_CHARS - 1] + "…"
