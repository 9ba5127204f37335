"""The MLflow runs of one experiment, as one process knows them: the whole, its stages, and the rounds each has.

A round is dated by the run's date and the rounds' own seconds, so that the same records get the same dates; but never
later than it was recorded: the rounds of a stage that another run trained cost this run no time.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Run

from lwfed.tracking.mlflow.entries import log
from lwfed.tracking.mlflow.runs import (
    MARK,
    OWNER,
    ROLE,
    RUN_ID,
    WHOLE,
    adopt_stage,
    logged_rounds,
    now_ms,
    running_stages,
    stage_run,
    whole_run,
)
from lwfed.tracking.mlflow.target import Target
from lwfed.tracking.protocol import Record, finite


class RunTree:
    """The runs of an experiment.

    Args:
        client: The client.
        target: Where in MLflow.
        live: Whether the run is going on: what is created now began now.

    Attributes:
        run_id: The MLflow run of the whole experiment; None before `open`.
        experiment_id: Its experiment.
        children: Stage -> its MLflow run, of those that were needed so far.
        logged: MLflow run -> global round -> its date, ms since 1970.
        created_ms: When the run was created, ms since 1970.
    """

    def __init__(self, client: MlflowClient, target: Target, *, live: bool) -> None:
        self._client, self._target, self._live = client, target, live
        self.run_id: str | None = None
        self.experiment_id: str | None = None
        self.children: dict[int, str] = {}
        self.logged: dict[str, dict[int, int]] = {}
        self.created_ms = 0
        self._name = ""
        self._experiments: list[str] = []
        self._owned: set[str] = set()

    def open(self, run: Record) -> Run:
        """Finds, adopts or creates the whole run, and adopts the platform's run of this process.

        Args:
            run: lwfed's RunRecord.

        Returns:
            The whole run, as it was found.
        """
        self._name, self.created_ms, self.children = str(run["run_id"]), milliseconds(run.get("created")), {}
        target = self._target
        adopted = self._client.get_run(target.adopted_run_id) if target.adopted_run_id else None
        whole = whole_run(self._client, target, run_id=self._name, adopted=adopted, start_ms=self._start_of_new_ms())
        self.run_id, self.experiment_id = whole.info.run_id, str(whole.info.experiment_id)
        self._experiments = [self.experiment_id]
        self._attach(whole)
        if adopted is not None and target.stage is not None:
            self._adopt(adopted, stage=target.stage)
        return whole

    def whole(self) -> str:
        """Returns the MLflow run of the whole experiment."""
        if self.run_id is None:
            raise RuntimeError("`start` comes before rounds and stages")
        return self.run_id

    def child(self, stage: int) -> str:
        """Finds or creates the run of a stage."""
        if stage not in self.children:
            run = stage_run(
                self._client,
                self._experiments,
                whole=self.whole(),
                stage=stage,
                run_id=self._name,
                start_ms=self._start_of_new_ms(),
            )
            self._attach(run)
            self.children[stage] = run.info.run_id
        return self.children[stage]

    def is_ours(self, run_id: str) -> bool:
        """Whether lwfed created a run, and so may end it."""
        return run_id in self._owned

    def reopen(self, run_id: str) -> None:
        """Sets a run of ours to running, and reads which rounds other processes have logged to it meanwhile."""
        run = self._client.get_run(run_id)
        if run_id in self._owned and run.info.status != "RUNNING":
            self._client.update_run(run_id, status="RUNNING")
        if int(run.data.metrics.get(MARK, 0)) not in {0, *self.logged[run_id]}:
            self._attach(run)

    def end(self, run_id: str, status: str) -> None:
        """Ends a run, where it is ours."""
        if run_id in self._owned and self._client.get_run(run_id).info.status != status:
            self._client.set_terminated(run_id, status=status)

    def running(self) -> list[str]:
        """Returns the stages' runs that still run; in a process of one stage only that stage's."""
        stage = self._target.stage
        if stage:
            found = [self.children[stage]] if stage in self.children else []
        else:
            found = running_stages(self._client, self._experiments, whole=self.whole())
        runs = [self._client.get_run(run_id) for run_id in found]
        self._owned |= {run.info.run_id for run in runs if run.data.tags.get(OWNER) == "lwfed"}
        return [run.info.run_id for run in runs if run.info.status == "RUNNING"]

    def date_of(self, number: int, seconds: Any, *, told_at: str | None) -> int:
        """Dates a round, ms since 1970: after the one before it, and not later than it was recorded.

        Args:
            number: Its global number.
            seconds: How long it took.
            told_at: When it was recorded, as ISO 8601; None: now.
        """
        dates = self.logged[self.whole()]
        if number in dates:
            return dates[number]
        before = self.date_before(number - 1)
        by_itself = before + (int(1000 * seconds) if finite(seconds) else 1)
        return max(before + 1, min(by_itself, milliseconds(told_at)))

    def date_before(self, last: int) -> int:
        """Returns the latest date of the rounds up to one; the run's own where there are none."""
        dates = self.logged[self.whole()]
        return max((date for step, date in dates.items() if step <= last), default=self.created_ms)

    def _adopt(self, adopted: Run, *, stage: int) -> None:
        """Makes the platform's run that of this process's stage, or of its task."""
        run_id, whole = adopted.info.run_id, self.whole()
        if run_id == whole:
            return
        if adopted.info.experiment_id not in self._experiments:
            self._experiments.append(str(adopted.info.experiment_id))
        if stage:
            adopt_stage(self._client, self._experiments, adopted, whole=whole, stage=stage)
            self.children[stage] = run_id
            self._attach(adopted)
        log(self._client, run_id, tags={RUN_ID: self._name, ROLE: "stage" if stage else "task", WHOLE: whole})

    def _start_of_new_ms(self) -> int:
        """When a run that is created now began: now, or with the last round of a run that is over."""
        if self._live:
            return now_ms()
        return max(self.logged.get(self.run_id or "", {}).values(), default=self.created_ms)

    def _attach(self, run: Run) -> None:
        self.logged[run.info.run_id] = logged_rounds(self._client, run)
        if run.data.tags.get(OWNER) == "lwfed":
            self._owned.add(run.info.run_id)


def milliseconds(moment: str | None) -> int:
    """Converts a moment in ISO 8601 to ms since 1970; now where there is none."""
    try:
        return int(1000 * datetime.fromisoformat(str(moment)).timestamp())
    except ValueError:
        return now_ms()
