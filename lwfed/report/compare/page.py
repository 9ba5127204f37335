"""Renders a comparison as one self-contained page."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from lwfed.formats import metric_title
from lwfed.report.compare.budget import TITLES, Budget, reaches
from lwfed.report.compare.figures import comparison_figures, styles
from lwfed.report.compare.records import Comparison, Spread
from lwfed.report.compare.table import difference_text, quality_text, rows
from lwfed.report.pages import page
from lwfed.report.plots import svg
from lwfed.types.records import DataRecord


def render_comparison(
    comparison: Comparison, *, name: str, data: DataRecord, budgets: Sequence[Budget] = (), chance: float | None = None
) -> str:
    """Renders the page.

    Args:
        comparison: The comparison.
        name: Its name.
        data: A RunRecord's `data`.
        budgets: Budgets per client.
        chance: The score of guessing, if known.

    Returns:
        A self-contained HTML document.
    """
    metric, reference = comparison.metric, comparison.reference
    looks = styles(comparison.groups)
    groups = [
        row
        | {
            "colour": looks[group.label].colour,
            "dash": " ".join(map(str, looks[group.label].dash)),
            "is_reference": group is reference,
            "quality_text": quality_text(metric, group.final),
            "difference_text": difference_text(metric, row["quality_difference"]),
        }
        for group, row in zip(comparison.groups, rows(comparison), strict=True)
    ]
    within = [
        {
            "text": budget.text,
            "title": TITLES[budget.quantity],
            "quantity": budget.quantity,
            "reaches": [
                {"label": reach.group.label, "best": quality_text(metric, reach.best), "verdict": reach.verdict}
                for reach in reaches(comparison, budget)
            ],
        }
        for budget in budgets
    ]
    runs = [
        {
            "run_id": run.run_id,
            "label": group.label,
            "seed": run.seed,
            "rounds": len(run.points),
            "quality": quality_text(metric, Spread(run.final, None)),
            "digest": run.digest,
        }
        for group in comparison.groups
        for run in group.runs
    ]
    figures = comparison_figures(comparison, budgets=budgets).values()
    return page(
        "compare.html",
        name=name,
        title=metric_title(metric),
        short_title=metric_title(metric, short=True),
        data=data,
        chance=chance,
        rows=groups,
        reference=None if reference is None else reference.label,
        caption=caption(comparison),
        figures=[(heading, Markup(svg(figure))) for heading, figure in figures],
        budgets=within,
        runs=runs,
        notes=comparison.notes,
    )


def caption(comparison: Comparison) -> str:
    """Returns an explanation of the figures' lines and bands."""
    seeds = {group.label: group.seeds for group in comparison.groups}
    if all(len(own) == 1 for own in seeds.values()):
        return "One seed each."
    named = {
        label: f"n = {len(own)} (seed{'s' if len(own) > 1 else ''} {', '.join(map(str, own))})"
        for label, own in seeds.items()
    }
    same = set(named.values())
    counts = f"Each: {same.pop()}" if len(same) == 1 else "; ".join(f"{label}: {text}" for label, text in named.items())
    return f"Lines are means over seeds, bands one sample standard deviation. {counts}."


def chance_of(metric: str, data: DataRecord) -> float | None:
    """Returns the score of guessing; None if unknown."""
    if metric == "test/t2i/R@1" and data.num_test:
        return 1 / data.num_test
    if metric == "test/accuracy" and data.classes:
        return 1 / len(data.classes)
    return None
