"""The MLflow runs of one experiment, as one process knows them: the whole run, its stages' runs, and their rounds.

A round's date follows from the run's date and the durations of its rounds, so that the same records get the same dates.
It is never later than the time of recording: rounds of a stage that another run trained took this run no time.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Run

from lwfed.formats import finite
from lwfed.tracking.jsonlines import Record
from lwfed.tracking.mlflow.entries import log
from lwfed.tracking.mlflow.runs import (
    MARK,
    OWNER,
    PARENT,
    ROLE,
    RUN_ID,
    STAGE,
    WHOLE,
    find_run,
    make_run,
    now_ms,
    whole_run,
)
from lwfed.tracking.mlflow.target import Target


class RunTree:
    """The runs of an experiment.

    Args:
        client: The client.
        target: The place in MLflow.
        live: Whether the run is still running; if so, new runs start now.

    Attributes:
        whole_id: The run of the whole experiment; empty before `open`.
        children: Stage -> its MLflow run, of the stages used so far.
        logged: MLflow run -> global round -> its date, ms since 1970.
    """

    def __init__(self, client: MlflowClient, target: Target, *, live: bool) -> None:
        self._client, self._target, self._live = client, target, live
        self.whole_id = ""
        self.children: dict[int, str] = {}
        self.logged: dict[str, dict[int, int]] = {}
        self._name, self._created_ms = "", 0
        self._experiments: list[str] = []

    def open(self, run: Record) -> Run:
        """Finds, adopts or creates the whole run for a RunRecord, and adopts the platform's run of this process."""
        self._name, self._created_ms, self.children = str(run["run_id"]), _milliseconds(run.get("created")), {}
        target = self._target
        adopted = self._client.get_run(target.adopted_run_id) if target.adopted_run_id else None
        start_ms = self._start_of_new_ms()
        whole = whole_run(self._client, target, run_id=self._name, adopted=adopted, start_ms=start_ms)
        self.whole_id = str(whole.info.run_id)
        self._experiments = [str(whole.info.experiment_id)]
        self._attach(whole)
        if adopted is not None and target.stage is not None and adopted.info.run_id != self.whole_id:
            self._adopt(adopted, stage=target.stage)
        return whole

    def child(self, stage: int) -> str:
        """Finds or creates the run of a stage, and returns its id."""
        if stage not in self.children:
            tags = self._tags_of(stage)
            run = find_run(self._client, self._experiments, tags)
            if run is None:
                new = {**tags, RUN_ID: self._name, PARENT: self.whole_id}
                start_ms = self._start_of_new_ms()
                run = make_run(self._client, self._experiments[0], new, name=f"stage {stage}", start_ms=start_ms)
            self._attach(run)
            self.children[stage] = run.info.run_id
        return self.children[stage]

    def reopen(self, run_id: str) -> None:
        """Sets lwfed's own run to running, and reads which rounds other processes have logged to it meanwhile."""
        run = self._client.get_run(run_id)
        if is_ours(run) and run.info.status != "RUNNING":
            self._client.update_run(run_id, status="RUNNING")
        if int(run.data.metrics.get(MARK, 0)) not in {0, *self.logged[run_id]}:
            self._attach(run)

    def end(self, run_id: str, status: str) -> None:
        """Ends a run if lwfed owns it."""
        run = self._client.get_run(run_id)
        if is_ours(run) and run.info.status != status:
            self._client.set_terminated(run_id, status=status)

    def running(self) -> list[str]:
        """Returns the stages' runs that are still open; in a process of one stage only that stage's."""
        query = f"tags.`{WHOLE}` = '{self.whole_id}' and tags.`{ROLE}` = 'stage' and attributes.status = 'RUNNING'"
        found = [run.info.run_id for run in self._client.search_runs(self._experiments, filter_string=query)]
        stage = self._target.stage
        return [run_id for run_id in found if not stage or run_id == self.children.get(stage)]

    def date_of(self, number: int, seconds: Any, *, recorded_at: str | None) -> int:
        """Returns a round's date, ms since 1970: after the previous round, and not later than the time of recording.

        Args:
            number: Its global number.
            seconds: Its duration.
            recorded_at: When it was recorded, as ISO 8601; None: now.
        """
        dates = self.logged[self.whole_id]
        if number in dates:
            return dates[number]
        before = self.date_up_to(number - 1)
        by_itself = before + (int(1000 * seconds) if finite(seconds) else 1)
        return max(before + 1, min(by_itself, _milliseconds(recorded_at)))

    def date_up_to(self, last: int) -> int:
        """Returns the latest date of the rounds up to `last`; the run's own date if there are none."""
        dates = self.logged[self.whole_id]
        return max((date for step, date in dates.items() if step <= last), default=self._created_ms)

    def _adopt(self, adopted: Run, *, stage: int) -> None:
        """Makes the platform's run the run of this process's stage or task, and replaces an earlier attempt's."""
        run_id, experiment = adopted.info.run_id, str(adopted.info.experiment_id)
        if experiment not in self._experiments:
            self._experiments.append(experiment)
        tags = {RUN_ID: self._name, ROLE: "stage" if stage else "task", WHOLE: self.whole_id}
        if stage:
            earlier = find_run(self._client, self._experiments, self._tags_of(stage))
            if earlier is not None and earlier.info.run_id != run_id:
                self._client.set_tag(earlier.info.run_id, ROLE, "attempt")
            tags |= {STAGE: str(stage)} | ({} if PARENT in adopted.data.tags else {PARENT: self.whole_id})
            self.children[stage] = run_id
            self._attach(adopted)
        log(self._client, run_id, tags=tags)

    def _tags_of(self, stage: int) -> dict[str, str]:
        return {WHOLE: self.whole_id, ROLE: "stage", STAGE: str(stage)}

    def _start_of_new_ms(self) -> int:
        """Returns the start of a new run: now, or the date of the last round of a run that has ended."""
        if self._live:
            return now_ms()
        return max(self.logged.get(self.whole_id, {}).values(), default=self._created_ms)

    def _attach(self, run: Run) -> None:
        run_id, points = run.info.run_id, []
        if MARK in run.data.metrics:
            points = self._client.get_metric_history(run_id, MARK)
        self.logged[run_id] = {point.step: point.timestamp for point in points}


def is_ours(run: Run) -> bool:
    """Whether lwfed created a run and so may end it."""
    return bool(run.data.tags.get(OWNER) == "lwfed")


def _milliseconds(moment: str | None) -> int:
    """Converts an ISO 8601 time to ms since 1970; now if there is none."""
    try:
        return int(1000 * datetime.fromisoformat(str(moment)).timestamp())
    except ValueError:
        return now_ms()
