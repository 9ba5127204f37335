"""Renders a run's report as one self-contained HTML file, for light and dark themes, from its records alone."""

from __future__ import annotations

import base64
import io
import re
import statistics
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from markupsafe import Markup
from PIL import Image

from lwfed.formats import (
    bytes_text,
    count_text,
    factor_text,
    finite,
    flops_text,
    lacks_text,
    number_text,
    percent_text,
    rates_text,
    seconds_text,
)
from lwfed.plan.stages import learning_rates
from lwfed.report.clients import client_rows, kind_rows
from lwfed.report.ledger import Row, ledger_rows, totals
from lwfed.report.pages import page
from lwfed.report.series import stages_of
from lwfed.run import runs
from lwfed.spec.document import write_yaml
from lwfed.spec.stored import stored_values
from lwfed.types.canonical import digest_of
from lwfed.types.records import DataRecord, RunRecord, StageRecord
from lwfed.types.round_records import RoundRecord

if TYPE_CHECKING:
    from lwfed.report.figures import Drawing

THUMBNAIL = 132
"""Pixels per side of a retrieved image."""
MOST_FAILURES = 30
"""The most failures in the report; the records have all of them."""
MOST_CLIENTS = 60
"""The most clients in the report's table."""
HEADLINES = {
    "test/t2i/R@1": "Text to image R@1",
    "test/i2t/R@1": "Image to text R@1",
    "test/accuracy": "Test accuracy",
    "test/f1": "Macro F1",
}
"""Metrics among the key figures -> their titles."""
NO_BREAK = "\N{NO-BREAK SPACE}"


def render(
    run: RunRecord,
    stages: Sequence[StageRecord],
    rounds: Sequence[RoundRecord],
    *,
    drawings: Mapping[str, Drawing] | None = None,
    retrieval: Sequence[Mapping[str, Any]] | None = None,
    links: Mapping[str, str] | None = None,
) -> str:
    """Renders a run's report.

    Args:
        run: The RunRecord.
        stages: StageRecords of the finished stages.
        rounds: RoundRecords of the committed rounds.
        drawings: The figures of the same records, as returned by `draw_run`; None: draws them here.
        retrieval: Queries with results: `{"query": text, "results": [{"image": PIL image, "score": cosine, "relevant":
            bool, "caption": text}]}`.
        links: Name -> URL of related pages.

    Returns:
        A self-contained HTML document.
    """
    stages = sorted(stages, key=lambda record: record.stage)
    rounds = sorted(rounds, key=lambda record: record.global_round)
    if drawings is None:
        from lwfed.report.figures import draw_run  # imports matplotlib

        drawings = draw_run(run, stages=stages, rounds=rounds)
    figures = {name: (drawing.title, Markup(drawing.svg)) for name, drawing in drawings.items()}
    others = ("resources-", "participation", "partition")
    rows, failures = ledger_rows(run, stages), _failures(rounds)
    plans = runs.plans_of(run) if run.depths else ()
    clients = client_rows(run, plans, rounds) if plans else []
    return page(
        "report.html",
        run=run,
        num_stages=len(run.stage_numbers),
        num_rounds=len(rounds),
        stages=stages,
        links=dict(links or {}),
        digest=stages[-1].digest if stages else None,
        spec_digest=digest_of(run.spec),
        tiles=_tiles(run, stages, rounds, rows=rows),
        metrics=[figure for name, figure in figures.items() if not name.startswith(others)],
        held_out=any(name.startswith("federated/") for record in rounds for name in record.metrics),
        chosen=[(stage.stage, stage.result_round, stage.rounds) for stage in stages if stage.result_round is not None],
        untrained=[stage.number for stage in stages_of(run, stages, rounds) if not stage.rounds],
        resources=[figure for name, figure in figures.items() if name.startswith("resources-")],
        ledger=rows,
        participation=figures.get("participation"),
        failures=failures[:MOST_FAILURES],
        num_failures=len(failures),
        recomputed=[(r.global_round, client) for r in rounds for client in r.recomputed_prefixes],
        lost_residuals=[(r.global_round, client) for r in rounds for client in r.lost_residuals],
        partition=figures["partition"],
        clients=clients[:MOST_CLIENTS],
        num_clients=len(clients),
        absent=[row.client for row in clients if not row.counted] if rounds else [],
        kinds=kind_rows(run, plans, stages),
        kept_units=[(record.global_round, record.kept_units) for record in rounds if record.kept_units],
        retrieval=[_query(item) for item in retrieval or ()],
        lacks=lacks_text(run.data.lacks, run.data.clients),
        rates=rates_text(learning_rates(plans)) if plans else None,
        spec=write_yaml(stored_values(run.spec), width=100),
    )


def _tiles(
    run: RunRecord, stages: Sequence[StageRecord], rounds: Sequence[RoundRecord], *, rows: Sequence[Row]
) -> list[dict[str, str]]:
    """Returns the key figures: quality, size and savings."""
    tiles = []
    metrics = final_metrics(stages, rounds)
    for name, title in HEADLINES.items():
        if name in metrics:
            chance = chance_of(name, run.data)
            note = f"{number_text(metrics[name] / chance)} times chance" if chance else "on the test set"
            tiles.append({"title": title, "value": percent_text(metrics[name]), "note": note})
    saved = totals(rows)
    for key, title, write in (
        ("traffic", "Traffic saved", bytes_text),
        ("memory", "Peak memory saved", bytes_text),
        ("flops", "Compute saved", flops_text),
    ):
        ours, whole, factor = saved[key]
        if factor is not None:
            tiles.append({"title": title, "value": factor_text(factor), "note": f"{write(ours)}, not {write(whole)}"})
    seconds = sum(record.wall_s for record in stages)
    sizes = [len(record.clients) for record in rounds]
    clients = f"{statistics.fmean(sizes):.1f}".removesuffix(".0") if sizes else ""
    mean = f"{clients} client{'' if clients == '1' else 's'} each, " if sizes else ""
    note = f"{mean}{seconds_text(seconds)} in all".replace(" in all", f"{NO_BREAK}in{NO_BREAK}all")
    tiles.append({"title": "Rounds", "value": count_text(len(rounds)), "note": note})
    for tile in tiles:
        tile["note"] = re.sub(r"(?<=\d) (?=[A-Za-z])", NO_BREAK, tile["note"])
    return tiles


def final_metrics(stages: Sequence[StageRecord], rounds: Sequence[RoundRecord]) -> dict[str, float]:
    """Returns the last known value of each metric."""
    metrics: dict[str, float] = {}
    for found in [*(record.metrics for record in rounds), *(record.metrics for record in stages)]:
        metrics |= {name: value for name, value in found.items() if finite(value)}
    return metrics


def _failures(rounds: Sequence[RoundRecord]) -> list[dict[str, Any]]:
    """Returns the clients that failed in each round, in training or in evaluation on their held-out shares."""
    return [
        {"round": record.global_round, "client": client, "work": work, "reason": reason}
        for record in rounds
        for failed, work in ((record.failed, "training"), (record.failed_evaluations, "evaluation"))
        for client, reason in sorted(failed.items())
    ]


def chance_of(metric: str, data: DataRecord) -> float | None:
    """Returns the score of guessing; None if unknown."""
    if metric == "test/t2i/R@1" and data.num_test:
        return 1 / (data.num_test_images or data.num_test)
    if metric == "test/accuracy" and data.classes:
        return 1 / len(data.classes)
    return None


def _query(item: Mapping[str, Any]) -> dict[str, Any]:
    results = []
    for result in item["results"]:
        picture = result["image"]
        shape = min(2.5, max(0.6, picture.width / picture.height))
        results.append({**result, "jpeg": _thumbnail(picture), "shape": f"{shape:.3g}"})
    return {"query": item["query"], "results": results, "hit": any(result["relevant"] for result in results)}


def _thumbnail(image: Image.Image) -> str:
    """Returns a small JPEG of an image as base64."""
    small = image.convert("RGB")
    factor = 2 * THUMBNAIL / max(small.size)
    method = Image.Resampling.NEAREST if factor >= 2 else Image.Resampling.LANCZOS  # small drawings stay sharp
    small = small.resize((max(1, round(small.width * factor)), max(1, round(small.height * factor))), method)
    data = io.BytesIO()
    small.save(data, format="JPEG", quality=82, optimize=True)
    return base64.b64encode(data.getvalue()).decode("ascii")
