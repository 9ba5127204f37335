"""Converts records into metrics and parameters, as experiment trackers such as MLflow have them."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lwfed.formats import finite

PARAM_CHARS = 500
"""Longest value of a parameter in characters; some MLflow servers accept no more."""


def flatten(record: Mapping[str, Any]) -> dict[str, float]:
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
    for key, name, reduce in (
        ("loss", "clients/loss_min", min),
        ("loss", "clients/loss_max", max),
        ("loss", "clients/loss_std", statistics.pstdev),
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
    metrics |= {f"wall_s/{key}": value for key, value in (record.get("wall_s") or {}).items()}
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
    if isinstance(value, list | tuple) and any(isinstance(item, Mapping) for item in value):
        value = dict(enumerate(value))
    if isinstance(value, Mapping) and value:
        for key, item in value.items():
            yield from _leaves(item, f"{name}.{key}" if name else str(key))
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
