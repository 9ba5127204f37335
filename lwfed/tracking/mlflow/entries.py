"""Maps records to MLflow's entries; pure, except for `log`, which writes within MLflow's limits."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag

from lwfed.formats import finite
from lwfed.tracking.jsonlines import Record
from lwfed.types.canonical import digest_of

TAG_CHARS = 5000
DIGEST_CHARS = 36
"""Longest digest of a dataset that MLflow stores."""


def metric_name(name: str) -> str:
    """Converts a name to characters that MLflow allows: `test/t2i/R@1` becomes `test/t2i/R_at_1`."""
    return re.sub(r"[^A-Za-z0-9_./ :-]", "_", name.replace("@", "_at_"))


def log(
    client: MlflowClient,
    run_id: str,
    *,
    metrics: Mapping[str, float] | None = None,
    params: Mapping[str, str] | None = None,
    tags: Mapping[str, Any] | None = None,
    step: int = 0,
    time_ms: int = 0,
) -> None:
    """Logs metrics in order, then tags, so that what marks a round or stage as logged never arrives before the rest.

    Args:
        client: The client.
        run_id: The MLflow run.
        metrics: Name -> value.
        params: Name -> text.
        tags: Name -> value; None values are skipped.
        step: The metrics' step.
        time_ms: The metrics' time, ms since 1970.
    """
    numbers = [Metric(metric_name(name), value, time_ms, step) for name, value in (metrics or {}).items()]
    texts = [Param(metric_name(name)[:250], value) for name, value in (params or {}).items()]
    marks = [RunTag(name, str(value)[:TAG_CHARS]) for name, value in (tags or {}).items() if value is not None]
    client.log_batch(run_id, metrics=numbers, params=texts)
    client.log_batch(run_id, tags=marks)


def run_tags(run: Record) -> dict[str, Any]:
    """Returns the lineage of a run, as known at its start; see `keys_tag`."""
    parent = run.get("parent") or {}
    return {
        "lwfed.run_id": run["run_id"],
        "lwfed.name": run.get("name"),
        "lwfed.strategy": run.get("strategy"),
        "lwfed.seed": (run.get("spec") or {}).get("seed"),
        "lwfed.spec_digest": digest_of(run["spec"]),
        "lwfed.code_version": run.get("code_version"),
        "lwfed.data_version": (run.get("data") or {}).get("version"),
        "lwfed.store": ((run.get("spec") or {}).get("store") or {}).get("uri"),
        "lwfed.parent_run_id": parent.get("run_id"),
        "lwfed.parent_stage": parent.get("stage"),
    }


def keys_tag(keys: Mapping[int, str]) -> dict[str, str]:
    """Returns a tag with the keys of a run's stages, in order; none without keys, so that an earlier tag stays."""
    return {"lwfed.stage_keys": ",".join(keys[stage] for stage in sorted(keys))} if keys else {}


def last_round(run: Record, stage: int) -> int:
    """Returns the global number of a stage's last round, if no gate ended a stage early."""
    rounds = [int(count) for count in run["spec"]["stages"]["rounds"]]
    return sum(rounds if run.get("strategy") == "end_to_end" else rounds[:stage])


def stage_tags(record: Record) -> dict[str, Any]:
    """Returns the lineage of a stage; the output digest marks the stage as completely logged."""
    return {
        "lwfed.stage_key": record.get("key"),
        "lwfed.plan_digest": record.get("plan_digest"),
        "lwfed.input_digest": record.get("input_digest"),
        "lwfed.rounds": record.get("rounds"),
        "lwfed.reused": record.get("reused"),
        "lwfed.output_digest": record["digest"],
    }


def ledger_metrics(record: Record) -> dict[str, float]:
    """Returns a stage's ledger, predicted and measured, and its wall time, as metrics."""
    ledger = record.get("ledger") or {}
    metrics = {
        f"ledger/{side}/{key}": float(value)
        for side in ("predicted", "measured")
        for key, value in (ledger.get(side) or {}).items()
        if key != "stage" and finite(value)
    }
    if finite(record.get("wall_s")):
        metrics["wall_s/stage"] = float(record["wall_s"])
    return metrics


def dataset_inputs(run: Record) -> list[DatasetInput]:
    """Returns the data of a run as MLflow's dataset inputs, with contexts train and test."""
    data = run["data"]
    root = ((run.get("spec") or {}).get("data") or {}).get("root")
    source_type, source = ("local", {"uri": root}) if root else ("code", {"tags": {"lwfed.source": data["source"]}})
    inputs = []
    for split in ("train", "test"):
        profile: dict[str, Any] = {"num_rows": data.get(f"num_{split}"), "num_classes": len(data.get("classes") or ())}
        if split == "train":
            profile["num_clients"] = len(data.get("clients") or {})
        dataset = Dataset(
            name=f"{data['source']}/{split}",
            digest=str(data["version"])[:DIGEST_CHARS],
            source_type=source_type,
            source=json.dumps(source),
            profile=json.dumps(profile),
        )
        inputs.append(DatasetInput(dataset=dataset, tags=[InputTag("mlflow.data.context", split)]))
    return inputs


def note_of(run: Record) -> str:
    """Returns a description of a run in Markdown, for its page in MLflow."""
    data = run.get("data") or {}
    known = [*(run.get("predicted") or ()), *(run.get("stages") or ())]  # a new run has keys of no stage yet
    stages, clients = len({stage["stage"] for stage in known}), len(data.get("clients") or {})
    lines = [
        f"**{run.get('name')}**: {str(run.get('strategy')).replace('_', ' ')} over {stages} "
        f"stage{'' if stages == 1 else 's'}, {clients} client{'' if clients == 1 else 's'}, {data.get('source')} data "
        f"({data.get('num_train')} train, {data.get('num_test')} test).",
        "",
        f"`lwfed show {run['run_id']}` shows it, `lwfed report {run['run_id']}` writes the report.",
    ]
    if run.get("parent"):
        lines.append(f"Starts from stage {run['parent']['stage']} of `{run['parent']['run_id']}`.")
    return "\n".join(lines)
