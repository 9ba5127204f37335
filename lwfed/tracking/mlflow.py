"""Tells records to MLflow: one run for the experiment, a nested one for each stage, metrics by global round.

`MlflowClient` throughout: there is no active run, so a run that the platform opened can be adopted and is never ended.
Every call may raise; `lwfed.tracking.mlflow_delivery` guards it. Telling the same records twice logs them once.

A point is dated by the run's date and the rounds' own seconds, so that the same records give the same dates; but never
later than it was told: the rounds of a stage that another run trained cost this run no time.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

from lwfed import __version__
from lwfed.tracking.mlflow_entries import (
    dataset_inputs,
    keys_of,
    keys_tag,
    ledger_metrics,
    log,
    note_of,
    run_tags,
    stage_tags,
)
from lwfed.tracking.mlflow_model import register_model
from lwfed.tracking.mlflow_target import Target, artifact_location
from lwfed.tracking.protocol import Record, finite, flatten, flatten_params

MARK = "global_round"
"""The metric that holds the last round logged: it is written in the same batch as the round's own."""
OWNER = "lwfed.owner"
"""The tag that is set only at a run's creation: a run that has it was made by lwfed and may be ended by it."""


class Recorder:
    """A tracker that writes to MLflow at once, and raises what MLflow raises.

    Args:
        target: Where.
        live: Whether the run is going on: system metrics are then sampled.
    """

    def __init__(self, target: Target, *, live: bool = True) -> None:
        for name in ("mlflow", "alembic"):
            logging.getLogger(name).setLevel(logging.ERROR)  # migrations step by step, samplers that start and stop
        self.client = MlflowClient(tracking_uri=target.uri, registry_uri=target.uri)
        self.run_id: str | None = None
        self.experiment_id: str | None = None
        self.model: str | None = None
        self.told_at: str | None = None
        """When what comes next was told, as ISO 8601; None: now."""
        self._target = target
        self._live = live
        self._run: Record = {}
        self._last: dict[str, int] = {}  # MLflow run -> last global round logged
        self._children: dict[int, str] = {}
        self._keys: dict[int, str] = {}
        self._owned: set[str] = set()
        self._time_ms = 0
        self._round = 0
        self._monitor: SystemMetricsMonitor | None = None

    def start(self, run: Record) -> None:
        """See `Tracker.start`."""
        self._run = run
        self._time_ms = _milliseconds(run.get("created"))
        self._round = 0
        self._children = {}
        self._keys = keys_of(run)
        target = self._target
        adopted = self.client.get_run(target.adopted_run_id) if target.adopted_run_id else None
        self.experiment_id = adopted.info.experiment_id if adopted else self._experiment()
        whole = self._whole(adopted)
        self.run_id = whole.info.run_id
        self._attach(whole)
        if adopted is not None and target.stage is not None:
            self._children[target.stage] = adopted.info.run_id
            self._attach(adopted)
        ours = self.run_id in self._owned
        # a platform logs parameters of its own into its run: ours get names that cannot meet them
        params = flatten_params(run["spec"], prefix="" if ours else "lwfed.")
        known = whole.data.params
        log(
            self.client,
            self.run_id,
            params={name: value for name, value in params.items() if name not in known},
            tags={**run_tags(run), **keys_tag(self._keys), **({"mlflow.note.content": note_of(run)} if ours else {})},
        )
        if not whole.inputs or not whole.inputs.dataset_inputs:
            self.client.log_inputs(self.run_id, datasets=dataset_inputs(run))
        if self._live:
            self._reopen(self.run_id)
            self._watch_system(self._children.get(target.stage or 0, self.run_id))

    def round(self, record: Record) -> None:
        """See `Tracker.round`."""
        number = int(record["global_round"])
        seconds = (record.get("wall_s") or {}).get("round")
        by_itself = self._time_ms + (int(1000 * seconds) if finite(seconds) else 1)
        when = max(self._time_ms + 1, min(by_itself, _milliseconds(self.told_at)))
        metrics = {**flatten(record), MARK: float(number)}
        for run_id in (self._child(int(record["stage"])), self._whole_id()):
            if number > self._last[run_id]:
                self._reopen(run_id)
                log(self.client, run_id, metrics=metrics, step=number, time_ms=when)
                self._last[run_id] = number
        self._time_ms, self._round = when, max(self._round, number)  # only now: a round that fails is told again

    def stage(self, record: Record) -> None:
        """See `Tracker.stage`."""
        stage = int(record["stage"])
        child = self._child(stage)
        tags = stage_tags(record)
        if self.client.get_run(child).data.tags.get("lwfed.output_digest") != record["digest"]:
            self._reopen(child)
            ledger = ledger_metrics(record)
            untrained = {} if record["rounds"] else record.get("metrics") or {}
            final = {name: float(value) for name, value in untrained.items() if finite(value)}
            log(self.client, self._whole_id(), metrics=ledger, step=stage, time_ms=self._time_ms)
            log(self.client, child, metrics={**ledger, **final}, tags=tags, step=self._round, time_ms=self._time_ms)
        self._end(child, "FINISHED")
        self._keys[stage] = str(record["key"])
        log(self.client, self._whole_id(), tags=keys_tag(self._keys))

    def finish(self, summary: Record, *, artifacts: Sequence[Path] = (), model: Record | None = None) -> None:
        """See `Tracker.finish`."""
        run_id = self._whole_id()
        self._stop_watching()
        self.client.log_dict(run_id, json.loads(json.dumps(summary, default=str)), "summary.json")
        for path in artifacts:
            if path.is_dir():
                self.client.log_artifacts(run_id, str(path), path.name)
            elif path.is_file():
                self.client.log_artifact(run_id, str(path))
        tags = self.client.get_run(run_id).data.tags
        if model is not None and tags.get("lwfed.model_digest") == model["digest"]:
            self.model = tags["lwfed.model"]
        elif model is not None:
            name = self._target.register_as or f"{self._target.experiment}-{self._run['name']}"
            version = register_model(
                self.client,
                model,
                name=name,
                run_id=run_id,
                experiment_id=str(self.experiment_id),
                step=self._round,
                tags={"lwfed.run_id": str(self._run["run_id"]), "lwfed.digest": str(model["digest"])},
            )
            self.model = f"{name}/{version}"
            log(self.client, run_id, tags={"lwfed.model": self.model, "lwfed.model_digest": model["digest"]})
        log(self.client, run_id, tags={"lwfed.digest": summary.get("digest"), **keys_tag(self._keys)})
        self._end(run_id, "FINISHED")

    def fail(self, reason: str) -> None:
        """See `Tracker.fail`."""
        self._break_off(reason, "FAILED")

    def abandon(self) -> None:
        """Notes that the process that told us is gone without a word."""
        if self.run_id is not None:
            self._break_off("the process ended without a word", "KILLED")

    def close(self, timeout: float = 60.0) -> None:
        """See `Tracker.close`."""
        self._stop_watching()

    def _experiment(self) -> str:
        name = self._target.experiment
        found = self.client.get_experiment_by_name(name)
        if found is None:
            try:
                return str(
                    self.client.create_experiment(name, artifact_location(self._target.uri, experiment=name), tags={})
                )
            except MlflowException:  # another process was quicker
                found = self.client.get_experiment_by_name(name)
                if found is None:
                    raise
        if found.lifecycle_stage == "deleted":
            self.client.restore_experiment(found.experiment_id)
        return str(found.experiment_id)

    def _whole(self, adopted: Run | None) -> Run:
        """Finds or makes the run of the whole experiment."""
        target = self._target
        if target.parent_run_id:
            return self.client.get_run(target.parent_run_id)
        if adopted is not None:
            if target.stage is None:
                return adopted
            parent = adopted.data.tags.get("mlflow.parentRunId")
            if parent:
                return self.client.get_run(parent)
        tags = {"lwfed.run_id": str(self._run["run_id"]), "lwfed.role": "run"}
        return self._find(tags) or self._create(tags, name=str(self._run["run_id"]))

    def _child(self, stage: int) -> str:
        """Finds or makes the run of a stage."""
        if stage not in self._children:
            parent = self._whole_id()
            tags = {"mlflow.parentRunId": parent, "lwfed.role": "stage", "lwfed.stage": str(stage)}
            run = self._find(tags) or self._create(
                {**tags, "lwfed.run_id": str(self._run["run_id"])}, name=f"stage {stage}"
            )
            self._attach(run)
            self._children[stage] = run.info.run_id
        return self._children[stage]

    def _find(self, tags: Mapping[str, str]) -> Run | None:
        asked = " and ".join(f"tags.`{key}` = '{value}'" for key, value in {**tags, OWNER: "lwfed"}.items())
        found = self.client.search_runs(
            [str(self.experiment_id)], filter_string=asked, max_results=1, order_by=["attributes.start_time DESC"]
        )
        return self.client.get_run(found[0].info.run_id) if found else None

    def _create(self, tags: Mapping[str, str], *, name: str) -> Run:
        source = {"mlflow.source.name": f"lwfed {__version__}", "mlflow.source.type": "LOCAL", OWNER: "lwfed"}
        start = self._time_ms if self._time_ms and not self._live else int(1000 * time.time())
        return self.client.create_run(str(self.experiment_id), start_time=start, tags={**tags, **source}, run_name=name)

    def _attach(self, run: Run) -> None:
        self._last[run.info.run_id] = int(run.data.metrics.get(MARK, 0))
        if run.data.tags.get(OWNER) == "lwfed":
            self._owned.add(run.info.run_id)

    def _whole_id(self) -> str:
        if self.run_id is None:
            raise RuntimeError("`start` comes before rounds and stages")
        return self.run_id

    def _reopen(self, run_id: str) -> None:
        if run_id in self._owned and self.client.get_run(run_id).info.status != "RUNNING":
            self.client.update_run(run_id, status="RUNNING")

    def _end(self, run_id: str, status: str) -> None:
        if run_id in self._owned and self.client.get_run(run_id).info.status != status:
            self.client.set_terminated(run_id, status=status)

    def _break_off(self, reason: str, status: str) -> None:
        self._stop_watching()
        run_id = self._whole_id()
        for child in self._children.values():
            if self.client.get_run(child).info.status == "RUNNING":
                log(self.client, child, tags={"lwfed.failure": reason})
                self._end(child, status)
        log(self.client, run_id, tags={"lwfed.failure": reason})
        self._end(run_id, status)

    def _watch_system(self, run_id: str) -> None:
        if self._monitor is None and self._target.system_metrics_s > 0:
            self._monitor = SystemMetricsMonitor(
                run_id,
                sampling_interval=self._target.system_metrics_s,
                resume_logging=True,
                tracking_uri=self._target.uri,
            )
            self._monitor.start()

    def _stop_watching(self) -> None:
        if self._monitor is not None:
            self._monitor.finish()
            self._monitor = None


def _milliseconds(moment: str | None) -> int:
    """Gives a moment in ISO 8601 as ms since 1970; now where there is none."""
    try:
        return int(1000 * datetime.fromisoformat(str(moment)).timestamp())
    except ValueError:
        return int(1000 * time.time())
