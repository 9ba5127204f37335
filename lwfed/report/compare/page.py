"""A comparison as one page, and its figures as files of their own."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from lwfed.report.compare.budget import TITLES, Budget, reaches
from lwfed.report.compare.records import Comparison
from lwfed.report.compare.table import difference_text, quality_text, rows
from lwfed.report.figures_compare import caption, composed, memory_figure, rounds_figure, spent_figure, styles
from lwfed.report.formats import metric_title
from lwfed.report.pages import page
from lwfed.report.svg import standalone
from lwfed.tracking.protocol import Record


def comparison_figures(comparison: Comparison, *, budgets: Sequence[Budget] = ()) -> dict[str, tuple[str, str]]:
    """Draws the four figures.

    Returns:
        Name -> title and SVG element.
    """
    title = metric_title(comparison.metric)
    reached = [reach for budget in budgets for reach in reaches(comparison, budget)]
    return {
        "quality-rounds": (
            "Quality for rounds", rounds_figure(comparison, title=title, reaches=reached),
        ),
        "quality-bytes": (
            "Quality for bytes moved", spent_figure(comparison, "bytes", title=title, reaches=reached),
        ),
        "quality-flops": (
            "Quality for FLOPs computed", spent_figure(comparison, "flops", title=title, reaches=reached),
        ),
        "memory-stages": ("Peak memory in each stage", memory_figure(comparison, budgets=budgets)),
    }  # fmt: skip


def comparison_files(comparison: Comparison, *, budgets: Sequence[Budget] = ()) -> dict[str, str]:
    """Gives file name -> SVG document: each figure, and `compare.svg` with all four."""
    drawn = comparison_figures(comparison, budgets=budgets)
    files = {f"{name}.svg": standalone(svg) for name, (_, svg) in drawn.items()}
    return files | {"compare.svg": standalone(composed(list(drawn.values()), label="Strategies side by side"))}


def render_comparison(
    comparison: Comparison, *, name: str, data: Record, budgets: Sequence[Budget] = (), chance: float | None = None
) -> str:
    """Renders the page.

    Args:
        comparison: The comparison.
        name: What it is called.
        data: A RunRecord's `data`.
        budgets: Budgets to judge by.
        chance: What guessing reaches, where that is known.

    Returns:
        An HTML document that needs nothing else.
    """
    metric = comparison.metric
    looks = styles(comparison.groups)
    told = rows(comparison)
    for row in told:
        row |= {
            "colour": looks[row["label"]].colour,
            "dash": looks[row["label"]].dash,
            "is_reference": comparison.reference is not None and row["label"] == comparison.reference.label,
            "quality_text": quality_text(metric, next(g.final for g in comparison.groups if g.label == row["label"])),
            "difference_text": difference_text(metric, row["quality_difference"]),
        }
    bought = [
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
    listed = [
        {
            "run_id": track.run_id,
            "label": group.label,
            "seed": track.seed,
            "rounds": len(track.points),
            "quality": quality_text(metric, type(group.final)(track.final, None)),
            "digest": track.digest,
        }
        for group in comparison.groups
        for track in group.tracks
    ]
    drawn = comparison_figures(comparison, budgets=budgets)
    return page(
        "compare.html",
        name=name,
        title=metric_title(metric),
        short_title=metric_title(metric, short=True),
        data=data,
        num_groups=len(comparison.groups),
        num_runs=len(listed),
        chance=chance,
        rows=told,
        reference=None if comparison.reference is None else comparison.reference.label,
        caption=caption(comparison),
        figures=[(heading, Markup(svg)) for heading, svg in drawn.values()],
        budgets=bought,
        runs=listed,
        notes=comparison.notes,
    )


def chance_of(metric: str, data: Record) -> float | None:
    """Gives what guessing reaches, for metrics of which that is known."""
    if metric == "test/t2i/R@1" and data.get("num_test"):
        return 1 / data["num_test"]
    if metric == "test/accuracy" and data.get("classes"):
        return 1 / len(data["classes"])
    return None
