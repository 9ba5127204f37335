"""Each stage's costs per client, predicted and measured, compared to end-to-end training."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from lwfed.formats import finite
from lwfed.types.records import Ledger, RunRecord, StageRecord

Row = dict[str, Any]


def ledger_rows(run: RunRecord, stages: Sequence[StageRecord]) -> list[Row]:
    """Returns one row per stage, and a last one for end-to-end training.

    Returns:
        Rows of stage, rounds, wall_s, reused, and the quantities `predicted` and `measured`: parameters present and
        trained; bytes up, down and of frozen blocks; flops per training sample; peak memory. Unknown values are None.
    """
    finished = {record.stage: record for record in stages}
    costs = {cost["stage"]: cost for cost in run.predicted}
    rows = []
    for stage in run.stage_numbers:
        record = finished.get(stage)
        ledger = record.ledger if record else Ledger()
        predicted = ledger.predicted or costs.get(stage) or {}
        rows.append(_row(stage, record, predicted=predicted, measured=ledger.measured))
    return [*rows, _row("end to end", None, predicted=run.end_to_end, measured={})]


def totals(rows: Sequence[Row]) -> dict[str, tuple[float, float, float | None]]:
    """Returns traffic, flops and memory as (the run's, end to end's over as many rounds, the factor between them).

    Traffic is one client's, both ways, including frozen blocks; memory is the largest stage's; flops are those of one
    training sample per round. Values are measured if possible, else predicted; end to end is predicted.
    """
    *staged, whole = rows
    trained = [row for row in staged if row["rounds"]]
    rounds = sum(row["rounds"] for row in trained)
    theirs = {key: _number(value) for key, value in whole["predicted"].items()}

    def spent(*keys: str) -> float:
        return math.fsum(row["rounds"] * _known(row, key) for row in trained for key in keys)

    both = {
        "traffic": (spent("up", "down", "frozen"), rounds * (theirs["up"] + theirs["down"])),
        "flops": (spent("flops"), rounds * theirs["flops"]),
        "memory": (max((_known(row, "memory") for row in trained), default=0.0), theirs["memory"]),
    }
    return {
        key: (own, whole, whole / own if finite(own) and finite(whole) and own > 0 else None)
        for key, (own, whole) in both.items()
    }


def _row(
    stage: int | str, record: StageRecord | None, *, predicted: Mapping[str, Any], measured: Mapping[str, Any]
) -> Row:
    return {
        "stage": stage,
        "rounds": record.rounds if record else None,
        "wall_s": record.wall_s if record else None,
        "reused": record.reused if record else False,
        "predicted": _quantities(predicted),
        "measured": _quantities(measured),
    }


def _quantities(values: Mapping[str, Any]) -> Row:
    """Returns the quantities of a prediction or a measurement under common names."""
    flops = [values.get("forward_flops"), values.get("backward_flops")]
    return {
        "present": values.get("present_params"),
        "trained": values.get("trained_params"),
        "up": values.get("bytes_up", values.get("exchanged_bytes")),
        "down": values.get("bytes_down", values.get("download_bytes", values.get("exchanged_bytes"))),
        "frozen": values.get("bytes_down_frozen", values.get("newly_frozen_bytes")),
        "flops": sum(value for value in flops if finite(value)) if all(map(finite, flops)) else None,
        "memory": values.get("peak_tensor_bytes", values.get("peak_bytes")),
    }


def _known(row: Row, key: str) -> float:
    """Returns a measured quantity, else the predicted one; NaN if neither is known."""
    return _number(row["measured"][key] if finite(row["measured"][key]) else row["predicted"][key])


def _number(value: Any) -> float:
    return float(value) if finite(value) else math.nan
