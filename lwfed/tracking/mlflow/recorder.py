"""Writes records to MLflow: one run for the experiment, a nested one per stage, metrics by global round.

It uses `MlflowClient` throughout: there is no active run, so it can adopt a run that the platform opened and never end
it. Every call may raise; `lwfed.tracking.mlflow.delivery` handles that. The same record is logged only once, whichever
processes send it and in whatever order.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

from mlflow import MlflowClient
from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

from lwfed.formats import finite
from lwfed.tracking.jsonlines import Record
from lwfed.tracking.metrics import flatten, flatten_params
from lwfed.tracking.mlflow.entries import (
    dataset_inputs,
    keys_tag,
    last_round,
    ledger_metrics,
    log,
    note_of,
    run_tags,
    stage_tags,
)
from lwfed.tracking.mlflow.model import register_model
from lwfed.tracking.mlflow.place import reason_of
from lwfed.tracking.mlflow.runs import ADOPTED, MARK, ROLE, RunTree, is_ours, pipeline_tags
from lwfed.tracking.mlflow.target import Target, model_name
from lwfed.types.errors import UnreachableError

FAILURE = "lwfed.failure"
"""The tag with the reason why a run ended early; a run that then finishes loses it."""


class Recorder:
    """Writes events to MLflow.

    Args:
        target: The place in MLflow.
        live: Whether the run is still running; if so, system metrics are sampled.

    Attributes:
        client: The client.
        run_id: The MLflow run of the experiment.
        experiment_id: Its experiment.
        model: The registered model, as `name/version`.
    """

    def __init__(self, target: Target, *, live: bool = True) -> None:
        for name in ("mlflow", "alembic"):
            logging.getLogger(name).setLevel(logging.ERROR)  # they log every step of a migration
        self.client = MlflowClient(tracking_uri=target.uri, registry_uri=target.uri)
        self.run_id: str | None = None
        self.experiment_id: str | None = None
        self.model: str | None = None
        self._target = target
        self._live = live
        self._tree = RunTree(self.client, target, live=live)
        self._run: Record = {}
        self._keys: dict[int, str] = {}
        self._monitor: SystemMetricsMonitor | None = None

    def record(self, event: Record) -> None:
        """Logs an event, as returned by `event_of*`; the first one is a start. Raises MLflow's errors."""
        match event["event"]:
            case "start":
                self._start(event["record"])
            case "round":
                self._round(event["record"], recorded_at=event.get("time"))
            case "stage":
                self._stage(event["record"])
            case "finish":
                self._finish(event)
            case "fail":
                self._end_early(event["reason"], "KILLED" if event.get("cancelled") else "FAILED")

    def abandon(self) -> None:
        """Ends the runs of a process that ended without a record: its stage's run, or all of them."""
        if self.run_id is not None and self._target.stage != 0:
            self._end_early("the process ended without reporting why", "KILLED")

    def close(self) -> None:
        """Ends the sampling of system metrics."""
        if self._monitor is not None:
            self._monitor.finish()
            self._monitor = None

    def _start(self, run: Record) -> None:
        whole = self._tree.open(run)
        run_id = self.run_id = whole.info.run_id
        self.experiment_id = str(whole.info.experiment_id)
        ours = is_ours(whole)
        self._run = run
        self._keys = {int(stage["stage"]): str(stage["key"]) for stage in run.get("stages") or ()}
        # the platform logs its own parameters into its run; the prefix avoids clashes
        params = flatten_params(run["spec"], prefix="" if ours else "lwfed.")
        known = whole.data.params
        own = {"mlflow.note.content": note_of(run), **pipeline_tags(self._target)}
        log(
            self.client,
            run_id,
            params={name: value for name, value in params.items() if name not in known},
            tags={
                **run_tags(run),
                **keys_tag(self._keys),
                ROLE: "run",
                **(own if ours else {ADOPTED: "yes"}),
            },
        )
        if not whole.inputs or not whole.inputs.dataset_inputs:
            self.client.log_inputs(run_id, datasets=dataset_inputs(run))
        if self._live:
            self._forget_failure(run_id, whole.data.tags)
            self._tree.reopen(run_id)
            if self._target.stage != 0:  # a process without a stage ends soon
                self._watch_system(self._tree.children.get(self._target.stage or 0, run_id))

    def _round(self, record: Record, *, recorded_at: str | None) -> None:
        tree, number = self._tree, int(record["global_round"])
        runs = (tree.child(int(record["stage"])), tree.whole_id)
        missing = [run_id for run_id in runs if number not in tree.logged[run_id]]
        if not missing:
            return
        for run_id in missing:
            tree.reopen(run_id)
        when = tree.date_of(number, (record.get("wall_s") or {}).get("round"), recorded_at=recorded_at)
        metrics = {**flatten(record), MARK: float(number)}
        for run_id in missing:
            if number not in tree.logged[run_id]:  # unless another process has just logged it
                log(self.client, run_id, metrics=metrics, step=number, time_ms=when)
                tree.logged[run_id][number] = when

    def _stage(self, record: Record) -> None:
        stage, tree = int(record["stage"]), self._tree
        whole, child = tree.whole_id, tree.child(stage)
        last = record.get("last_round") or last_round(self._run, stage)
        when = tree.date_up_to(last)
        ledger = ledger_metrics(record)
        tags, child_tags = self.client.get_run(whole).data.tags, self.client.get_run(child).data.tags
        mark = f"lwfed.output_digest.{stage}"  # the whole run has the stage's ledger
        if tags.get(mark) != record["digest"]:
            log(self.client, whole, metrics=ledger, tags={mark: record["digest"]}, step=stage, time_ms=when)
        if child_tags.get("lwfed.output_digest") != record["digest"]:
            tree.reopen(child)
            untrained = {} if record["rounds"] else record.get("metrics") or {}
            final = {name: float(value) for name, value in untrained.items() if finite(value)}
            log(self.client, child, metrics={**ledger, **final}, tags=stage_tags(record), step=last, time_ms=when)
        self._forget_failure(child, child_tags)
        tree.end(child, "FINISHED")
        self._keys[stage] = str(record["key"])
        if keys_tag(self._keys)["lwfed.stage_keys"] != tags.get("lwfed.stage_keys"):
            log(self.client, whole, tags=keys_tag(self._keys))

    def _finish(self, event: Record) -> None:
        """Ends the run before it uploads files, so that a failing upload leaves nothing open."""
        run_id, summary, model = self._tree.whole_id, event["record"], event.get("model")
        self.close()
        run = self.client.get_run(run_id)
        log(self.client, run_id, tags={"lwfed.digest": summary.get("digest"), **keys_tag(self._keys)})
        self._forget_failure(run_id, run.data.tags)
        self._tree.end(run_id, "FINISHED")
        self.client.log_dict(run_id, dict(summary), "summary.json")
        for path in map(Path, event.get("artifacts", ())):
            if path.is_dir():
                self.client.log_artifacts(run_id, str(path), path.name)
            elif path.is_file():
                self.client.log_artifact(run_id, str(path))
        if model is not None:
            name = model_name(self._target, run=self._run["name"])
            last = max(self._tree.logged[run_id], default=0)
            try:
                self.model = register_model(self.client, model, name=name, run=run, last_round=last)
            except Exception as error:
                raise UnreachableError(f"the model {name} is not registered: {reason_of(error)}") from error

    def _forget_failure(self, run_id: str, tags: Mapping[str, str]) -> None:
        if FAILURE in tags:
            self.client.delete_tag(run_id, FAILURE)

    def _end_early(self, reason: str, status: str) -> None:
        """Ends the runs that are still open; a process of one stage ends only that one, since a retry may follow."""
        self.close()
        stage, whole = self._target.stage, self._tree.whole_id
        for child in self._tree.running():
            log(self.client, child, tags={FAILURE: reason})
            self._tree.end(child, status)
        if not (stage and status == "KILLED"):
            log(self.client, whole, tags={FAILURE: reason})
        if not stage:
            self._tree.end(whole, status)

    def _watch_system(self, run_id: str) -> None:
        if self._monitor is None and self._target.system_metrics_s > 0:
            self._monitor = SystemMetricsMonitor(
                run_id,
                sampling_interval=self._target.system_metrics_s,
                resume_logging=True,
                tracking_uri=self._target.uri,
            )
            self._monitor.start()
