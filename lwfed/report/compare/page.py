"""Renders a comparison as one self-contained page."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from markupsafe import Markup

from lwfed.formats import metric_title
from lwfed.report.compare.budget import TITLES, Budget, reaches
from lwfed.report.compare.figures import comparison_figures, styles
from lwfed.report.compare.records import Comparison
from lwfed.report.compare.table import difference_text, quality_text, rows
from lwfed.report.page import chance_of
from lwfed.report.pages import page
from lwfed.report.plots import svg
from lwfed.types.records import DataRecord


def render_comparison(comparison: Comparison, *, name: str, data: DataRecord, budgets: Sequence[Budget] = ()) -> str:
    """Renders the page.

    Args:
        comparison: The comparison.
        name: Its name.
        data: A RunRecord's `data`.
        budgets: Budgets per client.

    Returns:
        A self-contained HTML document.
    """
    metric, figures = comparison.metric, comparison_figures(comparison, budgets=budgets).values()
    return page(
        "compare.html",
        name=name,
        title=metric_title(metric),
        short_title=metric_title(metric, short=True),
        data=data,
        chance=chance_of(metric, data),
        groups=list(zip(comparison.groups, rows(comparison), strict=True)),
        looks=styles(comparison.groups),
        reference=comparison.reference,
        quality=partial(quality_text, metric),
        difference=partial(difference_text, metric),
        caption=caption(comparison),
        figures=[(heading, Markup(svg(figure))) for heading, figure in figures],
        budgets=[(budget, TITLES[budget.quantity], reaches(comparison, budget)) for budget in budgets],
        runs=[(group, run) for group in comparison.groups for run in group.runs],
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
