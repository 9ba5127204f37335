"""Tells records to MLflow: one run for the experiment, a nested one for each stage, metrics by global round.

`MlflowClient` throughout: there is no active run, so a run that the platform opened can be adopted and is never ended.
Every call may raise; `lwfed.tracking.mlflow.delivery` guards it. Telling the same records twice logs them once, from
whichever process, and in whichever order.

A point is dated by the run's date and the rounds' own seconds, so that the same records give the same dates; but never
later than it was told: the rounds of a stage that another run trained cost this run no time.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

from lwfed.tracking.mlflow.entries import (
    dataset_inputs,
    keys_of,
    keys_tag,
    last_round,
    ledger_metrics,
    log,
    note_of,
    output_tag,
    run_tags,
    stage_tags,
)
from lwfed.tracking.mlflow.model import register_model
from lwfed.tracking.mlflow.runs import (
    ADOPTED,
    MARK,
    OWNER,
    ROLE,
    RUN_ID,
    WHOLE,
    adopt_stage,
    logged_rounds,
    now_ms,
    pipeline_tags,
    running_stages,
    stage_run,
    whole_run,
)
from lwfed.tracking.mlflow.target import Target
from lwfed.tracking.protocol import Record, finite, flatten, flatten_params

FAILURE = "lwfed.failure"
"""The tag that says why a run ended early; a run that goes on to its end loses it."""


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
        self._experiments: list[str] = []
        self._logged: dict[str, dict[int, int]] = {}  # MLflow run -> global round -> its date
        self._children: dict[int, str] = {}
        self._keys: dict[int, str] = {}
        self._owned: set[str] = set()
        self._created_ms = 0
        self._monitor: SystemMetricsMonitor | None = None

    def start(self, run: Record) -> None:
        """See `Tracker.start`."""
        self._run = run
        self._created_ms = _milliseconds(run.get("created"))
        self._children = {}
        target = self._target
        adopted = self.client.get_run(target.adopted_run_id) if target.adopted_run_id else None
        whole = whole_run(
            self.client, target, run_id=str(run["run_id"]), adopted=adopted, start_ms=self._start_of_new_ms()
        )
        self.run_id, self.experiment_id = whole.info.run_id, str(whole.info.experiment_id)
        self._experiments = [self.experiment_id]
        self._attach(whole)
        if adopted is not None and target.stage is not None:
            self._adopt(adopted, stage=target.stage)
        ours = self.run_id in self._owned
        self._keys = keys_of(run)
        # a platform logs parameters of its own into its run: ours get names that cannot meet them
        params = flatten_params(run["spec"], prefix="" if ours else "lwfed.")
        known = whole.data.params
        own = {"mlflow.note.content": note_of(run), **pipeline_tags(target)}
        log(
            self.client,
            self.run_id,
            params={name: value for name, value in params.items() if name not in known},
            tags={
                **run_tags(run),
                **keys_tag(self._keys),
                ROLE: "run",
                **(own if ours else {ADOPTED: "yes"}),
            },
        )
        if not whole.inputs or not whole.inputs.dataset_inputs:
            self.client.log_inputs(self.run_id, datasets=dataset_inputs(run))
        if self._live:
            self._forget_failure(self.run_id, whole.data.tags)
            self._reopen(self.run_id)
            if target.stage != 0:  # what works on no stage is soon over
                self._watch_system(self._children.get(target.stage or 0, self.run_id))

    def round(self, record: Record) -> None:
        """See `Tracker.round`."""
        number = int(record["global_round"])
        whole, child = self._whole_id(), self._child(int(record["stage"]))
        missing = [run_id for run_id in (child, whole) if number not in self._logged[run_id]]
        if not missing:
            return
        for run_id in missing:
            self._reopen(run_id)
        when = self._date_of(number, (record.get("wall_s") or {}).get("round"))
        metrics = {**flatten(record), MARK: float(number)}
        for run_id in missing:
            if number not in self._logged[run_id]:  # unless a second process logs the same
                log(self.client, run_id, metrics=metrics, step=number, time_ms=when)
                self._logged[run_id][number] = when

    def stage(self, record: Record) -> None:
        """See `Tracker.stage`."""
        stage = int(record["stage"])
        whole, child = self._whole_id(), self._child(stage)
        last = last_round(self._run, stage)
        when = max((date for step, date in self._logged[whole].items() if step <= last), default=self._created_ms)
        ledger = ledger_metrics(record)
        tags, told = self.client.get_run(whole).data.tags, self.client.get_run(child).data.tags
        if tags.get(output_tag(stage)) != record["digest"]:
            mark = {output_tag(stage): record["digest"]}
            log(self.client, whole, metrics=ledger, tags=mark, step=stage, time_ms=when)
        if told.get("lwfed.output_digest") != record["digest"]:
            self._reopen(child)
            untrained = {} if record["rounds"] else record.get("metrics") or {}
            final = {name: float(value) for name, value in untrained.items() if finite(value)}
            log(self.client, child, metrics={**ledger, **final}, tags=stage_tags(record), step=last, time_ms=when)
        self._forget_failure(child, told)
        self._end(child, "FINISHED")
        self._keys[stage] = str(record["key"])
        if keys_tag(self._keys)["lwfed.stage_keys"] != tags.get("lwfed.stage_keys"):
            log(self.client, whole, tags=keys_tag(self._keys))

    def finish(self, summary: Record, *, artifacts: Sequence[Path] = (), model: Record | None = None) -> None:
        """See `Tracker.finish`. The run is over before its files go: a place that refuses them keeps nothing open."""
        run_id = self._whole_id()
        self._stop_watching()
        tags = self.client.get_run(run_id).data.tags
        log(self.client, run_id, tags={"lwfed.digest": summary.get("digest"), **keys_tag(self._keys)})
        self._forget_failure(run_id, tags)
        self._end(run_id, "FINISHED")
        self.client.log_dict(run_id, json.loads(json.dumps(summary, default=str)), "summary.json")
        for path in artifacts:
            if path.is_dir():
                self.client.log_artifacts(run_id, str(path), path.name)
            elif path.is_file():
                self.client.log_artifact(run_id, str(path))
        if model is None:
            return
        if tags.get("lwfed.model_digest") == model["digest"]:
            self.model = tags["lwfed.model"]
            return
        name = self._target.register_as or f"{self._target.experiment}-{self._run['name']}"
        version = register_model(
            self.client,
            model,
            name=name,
            run_id=run_id,
            experiment_id=str(self.experiment_id),
            step=max(self._logged[run_id], default=0),
            tags={
                RUN_ID: str(self._run["run_id"]),
                "lwfed.digest": str(model["digest"]),
                "lwfed.uri": str(model["uri"]),
            },
        )
        self.model = f"{name}/{version}"
        log(self.client, run_id, tags={"lwfed.model": self.model, "lwfed.model_digest": model["digest"]})

    def fail(self, reason: str, *, cancelled: bool = False, closing: bool = False) -> None:
        """See `Tracker.fail`."""
        self._break_off(reason, "KILLED" if cancelled else "FAILED")

    def abandon(self) -> None:
        """Notes that the process that told us is gone without a word: its stage's run is over, or all of them."""
        if self.run_id is not None and self._target.stage != 0:
            self._break_off("the process ended without a word", "KILLED")

    def close(self, timeout: float = 60.0) -> None:
        """See `Tracker.close`."""
        self._stop_watching()

    def _adopt(self, adopted: Run, *, stage: int) -> None:
        """Makes the platform's run that of this process's stage, or of its task."""
        run_id, whole = adopted.info.run_id, self._whole_id()
        if run_id == whole:
            return
        if adopted.info.experiment_id not in self._experiments:
            self._experiments.append(str(adopted.info.experiment_id))
        if stage:
            adopt_stage(self.client, self._experiments, adopted, whole=whole, stage=stage)
            self._children[stage] = run_id
            self._attach(adopted)
        tags = {RUN_ID: str(self._run["run_id"]), ROLE: "stage" if stage else "task", WHOLE: whole}
        log(self.client, run_id, tags=tags)

    def _child(self, stage: int) -> str:
        """Finds or makes the run of a stage."""
        if stage not in self._children:
            run = stage_run(
                self.client,
                self._experiments,
                whole=self._whole_id(),
                stage=stage,
                run_id=str(self._run["run_id"]),
                start_ms=self._start_of_new_ms(),
            )
            self._attach(run)
            self._children[stage] = run.info.run_id
        return self._children[stage]

    def _start_of_new_ms(self) -> int:
        """When a run that is made now began: now, or when the run did that is told later."""
        if self._live:
            return now_ms()
        return max(self._logged.get(self.run_id or "", {}).values(), default=self._created_ms)

    def _date_of(self, number: int, seconds: Any) -> int:
        """Dates a round, ms since 1970: after the one before it, and not later than it was told."""
        dates = self._logged[self._whole_id()]
        if number in dates:
            return dates[number]
        before = max((date for step, date in dates.items() if step < number), default=self._created_ms)
        by_itself = before + (int(1000 * seconds) if finite(seconds) else 1)
        return max(before + 1, min(by_itself, _milliseconds(self.told_at)))

    def _attach(self, run: Run) -> None:
        self._logged[run.info.run_id] = logged_rounds(self.client, run)
        if run.data.tags.get(OWNER) == "lwfed":
            self._owned.add(run.info.run_id)

    def _whole_id(self) -> str:
        if self.run_id is None:
            raise RuntimeError("`start` comes before rounds and stages")
        return self.run_id

    def _reopen(self, run_id: str) -> None:
        """Makes a run of ours run again, and looks what other processes have logged to it meanwhile."""
        run = self.client.get_run(run_id)
        if run_id in self._owned and run.info.status != "RUNNING":
            self.client.update_run(run_id, status="RUNNING")
        if int(run.data.metrics.get(MARK, 0)) not in {0, *self._logged[run_id]}:
            self._attach(run)

    def _end(self, run_id: str, status: str) -> None:
        if run_id in self._owned and self.client.get_run(run_id).info.status != status:
            self.client.set_terminated(run_id, status=status)

    def _forget_failure(self, run_id: str, tags: Mapping[str, str]) -> None:
        if FAILURE in tags:
            self.client.delete_tag(run_id, FAILURE)

    def _break_off(self, reason: str, status: str) -> None:
        """Ends what still runs; in a process of one stage that stage's run alone: whoever started it may try again."""
        self._stop_watching()
        stage, whole = self._target.stage, self._whole_id()
        if stage:
            children = [self._children[stage]] if stage in self._children else []
        else:
            children = running_stages(self.client, self._experiments, whole=whole)
        for child in children:
            run = self.client.get_run(child)
            if run.data.tags.get(OWNER) == "lwfed":
                self._owned.add(child)
            if run.info.status == "RUNNING":
                log(self.client, child, tags={FAILURE: reason})
                self._end(child, status)
        if not (stage and status == "KILLED"):
            log(self.client, whole, tags={FAILURE: reason})
        if not stage:
            self._end(whole, status)

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
        return now_ms()
