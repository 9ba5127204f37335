"""The table of a comparison: each group's quality and costs, and the ratios to end to end."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

from lwfed.formats import MISSING, is_share, number_text, percent_text
from lwfed.report.compare.budget import Reach
from lwfed.report.compare.records import QUANTITIES, Comparison, Group, Memory, Spread

Row = dict[str, Any]


def rows(comparison: Comparison) -> list[Row]:
    """Returns one JSON row per group: means over its seeds, and ratios to end to end, above 1 if it costs less.

    Returns:
        Keys: label, strategy, seeds, runs, rounds, quality {mean, std}, quality_difference, moved_bytes, frozen_bytes,
        flops, peak_bytes, wall_s, and `less` {bytes, flops, memory}, including frozen bytes; None without an end-to-end
        group.
    """
    return [_row(group, comparison.reference) for group in comparison.groups]


def curves(comparison: Comparison) -> dict[str, list[Row]]:
    """Returns the points of each group's lines: label -> one row per round, with means over its seeds."""
    return {group.label: [asdict(point) for point in group.means] for group in comparison.groups}


def budget_rows(reaches: Sequence[Reach]) -> list[Row]:
    """Returns one JSON row per group and budget."""
    return [
        {
            "label": reach.group.label,
            "quantity": reach.budget.quantity,
            "budget": reach.budget.amount,
            "rounds": reach.rounds,
            "of_rounds": len(reach.group.means),
            "best": None if reach.best is None else asdict(reach.best),
            "crossed_in_round": None if reach.next_spent is None else reach.rounds + 1,
            "fits": reach.next_spent is None,
            "verdict": reach.verdict,
        }
        for reach in reaches
    ]


def stage_memory(group: Group) -> tuple[Memory, ...]:
    """Returns a group's peak memory per trained stage: the largest over its seeds."""
    by_stage: dict[int, list[Memory]] = {}
    for item in (item for run in group.runs for item in run.memory):
        by_stage.setdefault(item.stage, []).append(item)
    return tuple(
        Memory(stage, _largest(item.predicted for item in items), _largest(item.measured for item in items))
        for stage, items in sorted(by_stage.items())
    )


def quality_text(metric: str, value: Spread | None) -> str:
    """Returns a metric's value: shares as `36.9 ± 1.2 %`, losses as `1.23 ± 0.04`."""
    if value is None:
        return MISSING
    if is_share(metric):
        return percent_text(value.mean) if value.std is None else f"{100 * value.mean:.1f} ± {percent_text(value.std)}"
    return number_text(value.mean) + ("" if value.std is None else f" ± {number_text(value.std)}")


def difference_text(metric: str, value: float | None) -> str:
    """Returns a difference of a metric; shares in percentage points."""
    if value is None:
        return MISSING
    return f"{100 * value:+.1f} points".replace("-", "−") if is_share(metric) else f"{value:+.3g}".replace("-", "−")


def _row(group: Group, reference: Group | None) -> Row:
    last, final = group.last, group.final
    row: Row = {
        "label": group.label,
        "strategy": group.strategy,
        "seeds": list(group.seeds),
        "runs": [run.run_id for run in group.runs],
        "digests": [run.digest for run in group.runs],
        "rounds": len(group.means),
        "quality": asdict(final),
        "quality_difference": None,
        **{name: getattr(last, name) for name in ("moved_bytes", "frozen_bytes", "flops", "peak_bytes", "wall_s")},
        "less": None,
        "memory": [asdict(item) for item in stage_memory(group)],
    }
    if reference is not None:
        spent = {quantity: (reference.last.spent(quantity), last.spent(quantity)) for quantity in QUANTITIES}
        row["quality_difference"] = final.mean - reference.final.mean
        row["less"] = {quantity: whole / own if own else None for quantity, (whole, own) in spent.items()}
    return row


def _largest(values: Iterable[float | None]) -> float | None:
    return max((value for value in values if value is not None), default=None)
