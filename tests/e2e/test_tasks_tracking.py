"""The tasks of a pipeline are one run in MLflow: the first opens it, stages nest theirs, the last ends it.

Against a real sqlite store, without a platform that opens runs.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from kubernetes.config import kube_config

from lwfed import environment
from lwfed.drive import tasks
from lwfed.round.train_stage import train_stage
from lwfed.run.events import Event
from lwfed.run.specs import pack_spec
from lwfed.spec.load import build_spec
from lwfed.store.local import LocalStore
from lwfed.tracking.ending import CANCELLED_REASON
from lwfed.types.errors import CheckpointError, QuorumError, UnreachableError
from tests.delivering import delivering_in_threads
from tests.tiny import VALUES

pytestmark = pytest.mark.slow  # `import mlflow` and a database's migrations

FROM_OUTSIDE = ("MLFLOW_RUN_ID", "LWFED_MLFLOW_PARENT_RUN_ID", "MLFLOW_TRACKING_URI", "KFP_RUN_ID")
"""Variables that would name other runs, or another place."""


@pytest.fixture(scope="module", autouse=True)
def _in_threads() -> Iterator[None]:
    with delivering_in_threads():
        yield


@pytest.fixture(scope="module")
def mlflow_uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A sqlite store for all tests here: its migrations take seconds."""
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow') / 'mlflow.db'}"


class Pipeline:
    """A pipeline of the tiny experiment, whose tasks are run one by one."""

    def __init__(self, folder: Path, mlflow_uri: str, run_id: str) -> None:
        from mlflow import MlflowClient

        tracking = {"uri": mlflow_uri, "experiment": "lwfed"}
        spec = build_spec({**VALUES, "store": {"uri": str(folder)}, "tracking": tracking})
        self.client = MlflowClient(tracking_uri=mlflow_uri, registry_uri=mlflow_uri)
        self.common = {"spec": pack_spec(spec, store=LocalStore(folder)), "store": str(folder)}
        self.run_id = run_id
        self.prepared: tasks.Prepared | None = None
        self.digest = ""

    def prepare(self) -> None:
        self.prepared = tasks.prepare(**self.common)
        self.digest = self.prepared.input_digest

    def train(self, stage: int) -> None:
        assert self.prepared is not None
        done = tasks.train_stage(
            **self.common, stage=stage, plan_digest="", input_digest=self.digest,
            data_version=self.prepared.data_version, code_version=self.prepared.code_version,
        )  # fmt: skip
        self.digest = done.digest

    def evaluate(self) -> None:
        tasks.evaluate(**self.common, stage=2, digest=self.digest)

    def report(self) -> None:
        tasks.report(**self.common, stage=2, digest=self.digest)

    def cleanup(self, state: str) -> None:
        tasks.cleanup(**self.common, state=state)

    def runs(self, role: str) -> list[Any]:
        """Returns MLflow's runs of this pipeline that have a role, oldest first."""
        experiment = self.client.get_experiment_by_name("lwfed")
        if experiment is None:
            return []
        asked = f"tags.`lwfed.run_id` = '{self.run_id}' and tags.`lwfed.role` = '{role}'"
        return list(self.client.search_runs([experiment.experiment_id], asked, order_by=["attributes.start_time ASC"]))

    @property
    def whole(self) -> Any:
        """The one run of the experiment."""
        (run,) = self.runs("run")
        return run

    def states(self) -> list[str]:
        """Returns how the run of the experiment and those of its stages stand."""
        return [run.info.status for run in (self.whole, *self.runs("stage"))]

    def points(self, name: str) -> list[tuple[int, float]]:
        """Returns all points of a metric of the experiment's run."""
        return [(point.step, point.value) for point in self.client.get_metric_history(self.whole.info.run_id, name)]


@pytest.fixture
def make(mlflow_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Pipeline]:
    """Makes the pipeline of a run, and has this process be its tasks."""
    for name, value in environment.QUIET.items():
        monkeypatch.setenv(name, value)
    for name in FROM_OUTSIDE:
        monkeypatch.delenv(name, raising=False)

    def made(run_id: str) -> Pipeline:
        monkeypatch.setenv("LWFED_RUN_ID", run_id)
        return Pipeline(tmp_path / "store", mlflow_uri, run_id)

    return made


def breaks_after_a_round(*args: Any, emit: Any, **settings: Any) -> Any:
    """Trains a stage as ever, but loses its quorum after a round."""

    def tell(event: Event) -> None:
        emit(event)
        if event.kind == "round":
            raise QuorumError("too few updates", remedy="fix the clients")

    return train_stage(*args, emit=tell, **settings)


def test_tasks_are_one_run_from_the_first_to_the_last(
    make: Callable[[str], Pipeline], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KFP_RUN_ID", "id-of-the-pipeline")
    pipeline = make("whole")
    pipeline.prepare()
    assert pipeline.states() == ["RUNNING"], "a task that works on no stage opens the run, and leaves it open"
    assert pipeline.whole.data.tags["kfp.pipeline_run_id"] == "id-of-the-pipeline"
    pipeline.train(1)
    assert pipeline.states() == ["RUNNING", "FINISHED"]
    pipeline.train(2)
    pipeline.evaluate()
    assert pipeline.states() == ["RUNNING", "FINISHED", "FINISHED"]
    assert {run.data.tags["mlflow.parentRunId"] for run in pipeline.runs("stage")} == {pipeline.whole.info.run_id}
    pipeline.report()
    assert pipeline.states() == ["FINISHED"] * 3
    whole = pipeline.whole
    assert whole.data.tags["lwfed.digest"] == pipeline.digest
    assert [step for step, _ in pipeline.points("train/loss")] == [1, 2, 3, 4]
    files = {file.path for file in pipeline.client.list_artifacts(whole.info.run_id)}
    assert files >= {"report.html", "summary.json"}

    before = {name: pipeline.points(name) for name in whole.data.metrics}
    for word in ("COMPLETE", "SUCCEEDED", "RUNNING", "FAILED"):  # the run's own log says that it finished
        pipeline.cleanup(word)
        assert pipeline.states() == ["FINISHED"] * 3 and "lwfed.failure" not in pipeline.whole.data.tags
    pipeline.report()  # a task that is run again tells nothing twice
    assert {name: pipeline.points(name) for name in pipeline.whole.data.metrics} == before
    assert pipeline.states() == ["FINISHED"] * 3 and not pipeline.runs("task")
    assert len(pipeline.client.search_model_versions(f"run_id = '{whole.info.run_id}'")) == 1


def test_a_stage_that_fails_leaves_the_run_open_until_the_pipeline_is_over(
    make: Callable[[str], Pipeline], monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = make("broken")
    pipeline.prepare()
    with monkeypatch.context() as patch:
        patch.setattr(tasks, "run_stage", breaks_after_a_round)
        with pytest.raises(QuorumError):
            pipeline.train(1)
    assert pipeline.states() == ["RUNNING", "FAILED"], "the pipeline may try the stage again"
    for run in (pipeline.whole, *pipeline.runs("stage")):
        assert "too few updates" in run.data.tags["lwfed.failure"]
    pipeline.cleanup("FAILED")
    assert pipeline.states() == ["FAILED", "FAILED"]
    assert "too few updates" in pipeline.whole.data.tags["lwfed.failure"], "no vaguer word takes its place"
    assert "too few updates" in pipeline.runs("stage")[0].data.tags["lwfed.failure"]

    pipeline.train(1)  # the pipeline is retried
    assert pipeline.states() == ["RUNNING", "FINISHED"]
    assert [step for step, _ in pipeline.points("train/loss")] == [1, 2]
    assert not [run for run in (pipeline.whole, *pipeline.runs("stage")) if "lwfed.failure" in run.data.tags]


@pytest.mark.parametrize("state", ["RUNNING", "CANCELED"])  # the first is what KFP 2.17.0 says after Terminate
def test_a_pipeline_that_is_cancelled_between_its_stages_ends_its_run(
    state: str, make: Callable[[str], Pipeline]
) -> None:
    pipeline = make(f"cancelled-{state.lower()}")
    pipeline.prepare()
    pipeline.train(1)
    pipeline.cleanup(state)
    assert pipeline.states() == ["KILLED", "FINISHED"], "what is done stays done"
    assert pipeline.whole.data.tags["lwfed.failure"] == CANCELLED_REASON


def test_a_task_that_leaves_no_word_is_told_by_the_pipelines(make: Callable[[str], Pipeline]) -> None:
    pipeline = make("killed")
    pipeline.prepare()
    pipeline.cleanup("FAILED")
    assert pipeline.states() == ["FAILED"]
    assert "FAILED" in pipeline.whole.data.tags["lwfed.failure"]


def test_a_failure_of_the_last_judgement_is_told_too(make: Callable[[str], Pipeline]) -> None:
    pipeline = make("misjudged")
    pipeline.prepare()
    pipeline.train(1)
    pipeline.train(2)
    pipeline.digest = "0" * 64
    with pytest.raises(CheckpointError, match="not committed with digest"):
        pipeline.evaluate()
    pipeline.cleanup("FAILED")
    assert pipeline.states() == ["FAILED", "FINISHED", "FINISHED"]
    assert "not committed with digest" in pipeline.whole.data.tags["lwfed.failure"]


def test_a_retry_that_is_cancelled_is_told_as_cancelled(
    make: Callable[[str], Pipeline], monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = make("retried")
    pipeline.prepare()
    with monkeypatch.context() as patch:
        patch.setattr(tasks, "run_stage", breaks_after_a_round)
        with pytest.raises(QuorumError):
            pipeline.train(1)
    pipeline.cleanup("FAILED")
    pipeline.cleanup("RUNNING")  # a retry whose stage still waited when somebody terminated it
    assert pipeline.states() == ["KILLED", "FAILED"]
    assert pipeline.whole.data.tags["lwfed.failure"] == CANCELLED_REASON


def test_jobs_that_cannot_be_deleted_leave_no_run_that_seems_to_go_on(
    make: Callable[[str], Pipeline], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = make("no-cluster")
    pipeline.prepare()
    monkeypatch.setattr(kube_config, "KUBE_CONFIG_DEFAULT_LOCATION", str(tmp_path / "none"))
    monkeypatch.delenv("KUBECONFIG", raising=False)
    values = json.loads(pipeline.common["spec"])
    values |= {"launch": {"kind": "kubernetes"}, "kubernetes": {"image": "lwfed:1"}}
    pipeline.common["spec"] = json.dumps(values)
    with pytest.raises(UnreachableError, match="no Kubernetes cluster is configured"):
        pipeline.cleanup("FAILED")
    assert pipeline.states() == ["FAILED"]


def test_a_pipeline_whose_first_task_failed_has_no_run_to_end(make: Callable[[str], Pipeline]) -> None:
    pipeline = make("never-begun")
    pipeline.cleanup("FAILED")
    assert pipeline.runs("run") == []
