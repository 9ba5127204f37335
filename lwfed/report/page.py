"""One HTML file that says what a run did: self-contained, right on light and dark, drawn from the records alone."""

from __future__ import annotations

import base64
import binascii
import io
import re
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import yaml
from markupsafe import Markup
from PIL import Image, UnidentifiedImageError

from lwfed.report import formats
from lwfed.report.figures import RESOURCES, metric_figure, panels_of, resource_figure
from lwfed.report.figures_clients import participation_figure, partition_figure
from lwfed.report.figures_rounds import stages_of
from lwfed.report.pages import page
from lwfed.tracking.protocol import Record, finite, stage_numbers
from lwfed.types.canonical import digest_of

THUMBNAIL = 132
"""Pixels a side of a retrieved image."""
MOST_FAILURES = 30
"""Failures that the report lists; all are in the records."""


def render(
    run: Record,
    stages: Sequence[Record],
    rounds: Sequence[Record],
    *,
    retrieval: Sequence[Mapping[str, Any]] | None = None,
    failure: str | None = None,
    links: Mapping[str, str] | None = None,
) -> str:
    """Renders a run's report.

    Args:
        run: The RunRecord.
        stages: StageRecords of the stages that are finished.
        rounds: RoundRecords that are committed.
        retrieval: Queries with what was retrieved: `{"query": text, "results": [{"image": PIL image or
            "png_base64": text, "score": cosine, "relevant": bool, "caption": text}]}`.
        failure: Why the run ended early.
        links: Name -> address of what else there is to see.

    Returns:
        An HTML document that needs nothing else.
    """
    stages = sorted(stages, key=lambda record: record["stage"])
    rounds = sorted(rounds, key=lambda record: record["global_round"])
    spans = stages_of(run, stages, rounds)
    resource_figures = [(entry[1], resource_figure(entry[0], run=run, stages=stages)) for entry in RESOURCES]
    return page(
        "report.html",
        run=run,
        num_stages=len(stage_numbers(run)),
        stages=stages,
        status=_status(run, stages, rounds, failure),
        failure=failure,
        links=dict(links or {}),
        digest=stages[-1]["digest"] if stages else None,
        spec_digest=digest_of(run["spec"]),
        tiles=_tiles(run, stages, rounds),
        curves=[(panel.title, Markup(metric_figure(panel, stages=spans))) for panel in panels_of(rounds)],
        held_out=any(name.startswith("federated/") for record in rounds for name in record.get("metrics") or {}),
        untrained=[span.number for span in spans if not span.rounds],
        resources=[(title, Markup(svg)) for title, svg in resource_figures if svg],
        ledger=_ledger(run, stages),
        totals=_totals(run, stages),
        participation=Markup(participation_figure(run, stages=spans, rounds=rounds)) if rounds else None,
        failures=_failures(rounds)[:MOST_FAILURES],
        num_failures=len(_failures(rounds)),
        recomputed=[(r["global_round"], c) for r in rounds for c in r.get("recomputed_prefixes") or ()],
        lost_residuals=[(r["global_round"], client) for r in rounds for client in r.get("lost_residuals") or ()],
        partition=Markup(partition_figure(run)),
        retrieval=[_query(item) for item in retrieval or ()],
        spec=yaml.safe_dump(run["spec"], sort_keys=False, allow_unicode=True, width=100),
    )


def _status(run: Record, stages: Sequence[Record], rounds: Sequence[Record], failure: str | None) -> tuple[str, str]:
    """Gives what became of the run, in words and as a class."""
    total = len(stage_numbers(run))
    if failure:
        return "failed", "bad"
    if len(stages) == total:
        return "complete", "good"
    return f"{len(stages)} of {total} stages, {len(rounds)} rounds", "open"


def _tiles(run: Record, stages: Sequence[Record], rounds: Sequence[Record]) -> list[dict[str, str]]:
    """The figures that are looked for first: how good, how large, how much cheaper."""
    tiles = []
    metrics = final_metrics(stages, rounds)
    data = run["data"]
    chances = {
        "test/t2i/R@1": ("Text to image R@1", 1 / data["num_test"] if data.get("num_test") else None),
        "test/i2t/R@1": ("Image to text R@1", None),
        "test/accuracy": ("Test accuracy", 1 / len(data["classes"]) if data.get("classes") else None),
        "test/f1": ("Macro F1", None),
    }
    for name, (title, chance) in chances.items():
        if finite(metrics.get(name)):
            note = f"{formats.number_text(metrics[name] / chance)}× chance" if chance else "on the test set"
            tiles.append({"title": title, "value": formats.percent_text(metrics[name]), "note": note})
    totals = _totals(run, stages)
    for key, title, text in (
        ("traffic", "Traffic saved", formats.traffic_text),
        ("memory", "Peak memory saved", formats.memory_text),
        ("flops", "Compute saved", formats.flops_text),
    ):
        ours, whole, factor = totals[key]
        if finite(factor):
            tiles.append(
                {"title": title, "value": formats.factor_text(factor), "note": f"{text(ours)}, not {text(whole)}"}
            )
    seconds = sum(record["wall_s"] for record in stages if finite(record.get("wall_s")))
    part = [len(record.get("clients") or ()) for record in rounds]
    clients = f"{statistics.fmean(part):.1f}".removesuffix(".0") if part else ""
    mean = f"{clients} client{'' if clients == '1' else 's'} each, " if part else ""
    note = f"{mean}{formats.time_text(seconds)} in all".replace(" in all", "\N{NO-BREAK SPACE}in\N{NO-BREAK SPACE}all")
    tiles.append({"title": "Rounds", "value": formats.count_text(len(rounds)), "note": note})
    for tile in tiles:
        tile["note"] = re.sub(r"(?<=\d) (?=[A-Za-z])", "\N{NO-BREAK SPACE}", tile["note"])
    return tiles


def final_metrics(stages: Sequence[Record], rounds: Sequence[Record]) -> dict[str, Any]:
    """Gives the last known value of each metric."""
    metrics: dict[str, Any] = {}
    for record in [*rounds, *stages]:
        metrics |= {name: value for name, value in (record.get("metrics") or {}).items() if finite(value)}
    return metrics


def _ledger(run: Record, stages: Sequence[Record]) -> list[dict[str, Any]]:
    """A row for each stage: predicted beside measured, and the factor saved against end to end."""
    done = {record["stage"]: record for record in stages}
    costs = {cost["stage"]: cost for cost in run.get("predicted") or ()}
    rows = []
    for stage in stage_numbers(run):
        record = done.get(stage, {})
        ledger = record.get("ledger") or {}
        rows.append(
            {
                "stage": stage,
                "rounds": record.get("rounds"),
                "wall_s": record.get("wall_s"),
                "reused": record.get("reused", False),
                "predicted": _quantities(ledger.get("predicted") or costs.get(stage) or {}),
                "measured": _quantities(ledger.get("measured") or {}),
            }
        )
    rows.append(
        {
            "stage": "end to end",
            "rounds": None,
            "wall_s": None,
            "reused": False,
            "predicted": _quantities(run.get("end_to_end") or {}),
            "measured": {},
        }
    )
    return rows


def _quantities(values: Mapping[str, Any]) -> dict[str, Any]:
    """Names a StageCost's and a measurement's quantities alike."""
    flops = [values.get("forward_flops"), values.get("backward_flops")]
    return {
        "present": values.get("present_params"),
        "trained": values.get("trained_params"),
        "up": values.get("bytes_up", values.get("exchanged_bytes")),
        "down": values.get("bytes_down", values.get("download_bytes", values.get("exchanged_bytes"))),
        "frozen": values.get("bytes_down_frozen", values.get("newly_frozen_bytes")),
        "flops": sum(flops) if all(finite(value) for value in flops) else None,
        "memory": values.get("peak_tensor_bytes", values.get("peak_bytes")),
    }


def _totals(run: Record, stages: Sequence[Record]) -> dict[str, tuple[Any, Any, Any]]:
    """Over the stages that are finished: ours, end to end over as many rounds, and the factor between them.

    Traffic is a client's, both ways, frozen blocks included; memory is the largest stage's; FLOPs are those of one
    training sample a round. Measured where it was measured, else predicted; end to end is predicted.
    """
    whole = _quantities(run.get("end_to_end") or {})
    ours = {"traffic": 0.0, "memory": 0.0, "flops": 0.0}
    theirs = {"traffic": 0.0, "memory": 0.0, "flops": 0.0}
    for row in _ledger(run, stages)[:-1]:
        rounds = row["rounds"]
        if not rounds:
            continue
        values = {
            key: row["measured"].get(key) if finite(row["measured"].get(key)) else row["predicted"].get(key)
            for key in ("up", "down", "frozen", "flops", "memory")
        }
        measured_frozen = row["measured"].get("frozen")
        frozen = rounds * measured_frozen if finite(measured_frozen) else row["predicted"].get("frozen") or 0
        ours["traffic"] += rounds * _or_nan(values["up"]) + rounds * _or_nan(values["down"]) + frozen
        ours["flops"] += rounds * _or_nan(values["flops"])
        ours["memory"] = max(ours["memory"], _or_nan(values["memory"]))
        theirs["traffic"] += rounds * (_or_nan(whole["up"]) + _or_nan(whole["down"]))
        theirs["flops"] += rounds * _or_nan(whole["flops"])
        theirs["memory"] = _or_nan(whole["memory"])
    known = {key for key in ours if finite(ours[key]) and finite(theirs[key]) and ours[key] > 0}
    return {key: (ours[key], theirs[key], theirs[key] / ours[key] if key in known else None) for key in ours}


def _or_nan(value: Any) -> float:
    return float(value) if finite(value) else float("nan")


def _failures(rounds: Sequence[Record]) -> list[dict[str, Any]]:
    """Which clients failed in which round, at training or at judging the model on their held-out share."""
    return [
        {"round": record["global_round"], "client": client, "work": work, "reason": reason}
        for record in rounds
        for key, work in (("failed", "training"), ("failed_evaluations", "evaluation"))
        for client, reason in sorted((record.get(key) or {}).items())
    ]


def _query(item: Mapping[str, Any]) -> dict[str, Any]:
    results = []
    for result in item["results"]:
        picture = _picture(result)
        shape = 1.0 if picture is None else picture.width / picture.height
        results.append({**result, "jpeg": _thumbnail(picture), "shape": f"{min(2.5, max(0.6, shape)):.3g}"})
    return {"query": item["query"], "results": results, "hit": any(result["relevant"] for result in results)}


def _picture(result: Mapping[str, Any]) -> Image.Image | None:
    """Gives a result's image; None where there is none that can be read."""
    image: Image.Image | None = result.get("image")
    if image is not None:
        return image
    try:
        return Image.open(io.BytesIO(base64.b64decode(result.get("png_base64") or "", validate=True)))
    except (binascii.Error, UnidentifiedImageError, OSError):
        return None


def _thumbnail(image: Image.Image | None) -> str:
    """Gives a small JPEG of an image as base64; empty for None."""
    if image is None:
        return ""
    small = image.convert("RGB")
    factor = 2 * THUMBNAIL / max(small.size)
    method = Image.Resampling.NEAREST if factor >= 2 else Image.Resampling.LANCZOS  # small drawings stay sharp
    small = small.resize((max(1, round(small.width * factor)), max(1, round(small.height * factor))), method)
    data = io.BytesIO()
    small.save(data, format="JPEG", quality=82, optimize=True)
    return base64.b64encode(data.getvalue()).decode("ascii")
