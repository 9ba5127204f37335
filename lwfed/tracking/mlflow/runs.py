"""The MLflow runs of one experiment, as one process knows them: the whole run, its stages' runs, and their rounds.

Only tags decide which runs these are, so that processes that share nothing but the server find the same ones.

A round's date follows from the run's date and the durations of its rounds, so that the same records get the same dates.
It is never later than the time of recording: rounds of a stage that another run trained took this run no time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.exceptions import MlflowException

from lwfed import __version__
from lwfed.formats import finite
from lwfed.tracking.jsonlines import Record
from lwfed.tracking.mlflow.entries import log
from lwfed.tracking.mlflow.place import SERVER
from lwfed.tracking.mlflow.target import Target, artifact_location
from lwfed.types.errors import NotFoundError, UnreachableError

MARK = "global_round"
"""The metric that marks rounds as logged; it is written in the same batch as the round's own metrics."""
OWNER = "lwfed.owner"
"""A tag that is set only at creation: lwfed created a run that has it, and may end it."""
RUN_ID = "lwfed.run_id"
ROLE = "lwfed.role"
"""`run`: a whole experiment; `stage`; `task`: another process of the platform; `attempt`: an old `stage`; `sweep`."""
SWEEP = "lwfed.sweep"
"""The tag on a sweep's run with the study's name."""
WHOLE = "lwfed.whole"
"""The tag on runs of stages and tasks that names the MLflow run of the whole experiment."""
STAGE = "lwfed.stage"
ADOPTED = "lwfed.adopted"
PARENT = "mlflow.parentRunId"
PIPELINE_RUN = "kfp.pipeline_run_id"
PIPELINE_URL = "kfp.pipeline_run_url"


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
        whole = self._whole(adopted)
        self.whole_id = str(whole.info.run_id or "")
        if not self.whole_id:
            raise UnreachableError(f"{target.uri} answers, but not as MLflow does", remedy=SERVER)
        self._experiments = [str(whole.info.experiment_id)]
        self._attach(whole)
        if adopted is not None and target.stage is not None and adopted.info.run_id != self.whole_id:
            self._adopt(adopted, stage=target.stage)
        return whole

    def child(self, stage: int) -> str:
        """Finds or creates the run of a stage, and returns its id."""
        if stage not in self.children:
            tags = self._tags_of(stage)
            run = self._find(self._experiments, tags)
            if run is None:
                run = self._make(self._experiments[0], {**tags, PARENT: self.whole_id}, name=f"stage {stage}")
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

    def _whole(self, adopted: Run | None) -> Run:
        """Finds, adopts or creates the run of the whole experiment.

        It is the run that `target.parent_run_id` names; else the adopted run, if this process has the whole experiment;
        else the run with the tag of the run id; else the platform's run above the adopted one; else a new run.
        """
        client, target = self._client, self._target
        if target.parent_run_id:
            return client.get_run(target.parent_run_id)
        if adopted is not None and target.stage is None:
            return adopted
        tags = {RUN_ID: self._name, ROLE: "run"}
        experiment = self.experiment() if adopted is None else str(adopted.info.experiment_id)
        found = self._find([experiment], tags)
        above = None
        if found is None and adopted is None:  # the platform may have chosen another experiment
            everywhere = [item.experiment_id for item in client.search_experiments()]
            found = self._find(everywhere, {**tags, ADOPTED: "yes"})
        elif found is None:
            above = self._topmost(adopted)
            if above is not None and above.data.tags.get(RUN_ID) in (None, self._name):
                found = above
        if found is not None:
            return found
        nested = {} if above is None else {PARENT: above.info.run_id}  # next to another experiment of the same pipeline
        if target.group is not None:
            nested = {PARENT: self.group(experiment)}
        return self._make(experiment, {**tags, **nested}, name=self._name)

    def group(self, experiment: str) -> str:
        """Finds or creates the run of the target's sweep, and returns its id."""
        tags = {SWEEP: str(self._target.group), ROLE: "sweep"}
        run = self._find([experiment], tags) or self._client.create_run(
            experiment, tags={**tags, OWNER: "lwfed"}, run_name=self._target.group
        )
        return str(run.info.run_id)

    def experiment(self) -> str:
        """Finds or creates the experiment that the target names. Raises NotFoundError if somebody deleted it."""
        client, name = self._client, self._target.experiment
        found = client.get_experiment_by_name(name)
        if found is None:
            try:
                return str(client.create_experiment(name, artifact_location(self._target.uri, experiment=name)))
            except MlflowException:  # another process was quicker
                found = client.get_experiment_by_name(name)
                if found is None:
                    raise
        if found.lifecycle_stage == "deleted":
            raise NotFoundError(
                f"the experiment {name} was deleted in MLflow",
                remedy=f"`mlflow experiments restore --experiment-id {found.experiment_id}` brings it back; "
                "-o tracking.experiment=NAME records in another",
            )
        return str(found.experiment_id)

    def _topmost(self, run: Run) -> Run | None:
        """Climbs from a task's run to the run of the whole pipeline; None if the task's run has no parent."""
        above = None
        while parent := (above or run).data.tags.get(PARENT):
            above = self._client.get_run(parent)
            if PIPELINE_RUN in above.data.tags:
                break
        return above

    def _find(self, experiments: Sequence[str], tags: Mapping[str, str]) -> Run | None:
        """Returns the newest run that has all the tags, complete with inputs and all tags; None if there is none."""
        query = " and ".join(f"tags.`{key}` = '{value}'" for key, value in tags.items())
        found = self._client.search_runs(
            list(experiments), filter_string=query, max_results=1, order_by=["attributes.start_time DESC"]
        )
        return self._client.get_run(found[0].info.run_id) if found else None

    def _make(self, experiment: str, tags: Mapping[str, str], *, name: str) -> Run:
        """Creates a run that lwfed owns. It starts now, or at the last round of an experiment that has ended."""
        rounds = self.logged.get(self.whole_id, {}).values()
        start_ms = _milliseconds(None) if self._live else max(rounds, default=self._created_ms)
        source = {"mlflow.source.name": f"lwfed {__version__}", "mlflow.source.type": "LOCAL"}
        own = {**tags, **source, OWNER: "lwfed", RUN_ID: self._name}
        return self._client.create_run(experiment, start_time=start_ms, tags=own, run_name=name)

    def _adopt(self, adopted: Run, *, stage: int) -> None:
        """Makes the platform's run the run of this process's stage or task, and replaces an earlier attempt's."""
        run_id, experiment = adopted.info.run_id, str(adopted.info.experiment_id)
        if experiment not in self._experiments:
            self._experiments.append(experiment)
        tags = {RUN_ID: self._name, ROLE: "stage" if stage else "task", WHOLE: self.whole_id}
        if stage:
            earlier = self._find(self._experiments, self._tags_of(stage))
            if earlier is not None and earlier.info.run_id != run_id:
                self._client.set_tag(earlier.info.run_id, ROLE, "attempt")
            tags |= {STAGE: str(stage)} | ({} if PARENT in adopted.data.tags else {PARENT: self.whole_id})
            self.children[stage] = run_id
            self._attach(adopted)
        log(self._client, run_id, tags=tags)

    def _tags_of(self, stage: int) -> dict[str, str]:
        return {WHOLE: self.whole_id, ROLE: "stage", STAGE: str(stage)}

    def _attach(self, run: Run) -> None:
        run_id, points = run.info.run_id, []
        if MARK in run.data.metrics:
            points = self._client.get_metric_history(run_id, MARK)
        self.logged[run_id] = {point.step: point.timestamp for point in points}


def is_ours(run: Run) -> bool:
    """Whether lwfed created a run and so may end it."""
    return bool(run.data.tags.get(OWNER) == "lwfed")


def pipeline_tags(target: Target) -> dict[str, str]:
    """Returns tags that name a run's pipeline run, as Kubeflow's own plugin does.

    The URL is only a path if the address of Kubeflow's pages is unknown.
    """
    run_id = target.pipeline_run_id
    if run_id is None:
        return {}
    return {PIPELINE_RUN: run_id, PIPELINE_URL: f"{target.pipeline_ui.rstrip('/')}/#/runs/details/{run_id}"}


def _milliseconds(moment: str | None) -> int:
    """Converts an ISO 8601 time to ms since 1970; now if there is none."""
    try:
        date = datetime.fromisoformat(str(moment))
    except ValueError:
        date = datetime.now(UTC)
    return int(1000 * date.timestamp())
