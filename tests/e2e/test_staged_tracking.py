"""An experiment that is many processes, one after another, is told to an MLflow server as if it were one.

Only the store and the server are shared. The platform's part is played by the client: it opens a run for the pipeline
and one inside it for each task, hands a task its run's id, and ends the runs.
"""

from __future__ import annotations

import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lwfed import environment
from lwfed.drive.trackers import NO_STAGE, record_finish, start_trackers
from lwfed.launch.in_process import InProcess
from lwfed.round.train_stage import train_stage
from lwfed.round.workbench import Workbench
from lwfed.run import runs
from lwfed.run.runs import Options
from lwfed.run.tasks import RunTask, StageTask
from lwfed.spec.federation import TrackingSpec
from lwfed.steps.experiment import place_of, summarise
from lwfed.tracking.jsonlines import event_of_failure
from lwfed.types.errors import QuorumError
from tests.delivering import delivering_in_threads
from tests.events import emit_to
from tests.tiny import prepared, tiny_spec

pytestmark = pytest.mark.slow

NOBODY = "http://127.0.0.1:9"
CLOCKED = ("wall_s/", "memory/", "system/", "ledger/measured/peak")
"""Metrics that two runs of equal work need not share."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An MLflow server that hands artifacts on; one for all tests: its start takes seconds."""
    folder = tmp_path_factory.mktemp("server")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", "sqlite:///mlflow.db", "--artifacts-destination", str(folder / "artifacts")]
    quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with (folder / "log.txt").open("wb") as log:
        process = subprocess.Popen(
            command, cwd=folder, env=environment.child_environment(**quiet), stdout=log, stderr=log
        )
    uri = f"http://127.0.0.1:{port}"
    try:
        ends_at = time.monotonic() + 120
        while not _answers(f"{uri}/health"):
            assert process.poll() is None and time.monotonic() < ends_at, (folder / "log.txt").read_text()
            time.sleep(0.2)
        yield uri
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(address, timeout=2):
            return True
    except OSError:
        return False


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch, server: str) -> None:
    for name, value in environment.QUIET.items():
        monkeypatch.setenv(name, value)
    for name in ("MLFLOW_RUN_ID", "LWFED_MLFLOW_PARENT_RUN_ID", "KFP_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)


@pytest.fixture
def client(server: str) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(server, registry_uri=server)


@pytest.fixture(scope="module", autouse=True)
def _in_threads() -> Iterator[None]:
    with delivering_in_threads():
        yield


class Experiment:
    """The tiny experiment in a folder, worked on as by processes that share its store alone."""

    def __init__(self, folder: Path, run_id: str) -> None:
        self.bench = Workbench.at(str(folder))
        self.run = prepared(tiny_spec(folder), store=self.bench.store, options=Options(run_id=run_id))
        self.warnings: list[str] = []

    def part(self, stage: int | None) -> Any:
        """Starts the trackers of a process."""
        run = runs.read_run(self.bench.store, self.run.run_id)
        spec = TrackingSpec(uri="http://from-the-environment", experiment="lwfed")
        return start_trackers(run, spec, store=self.bench.store, warn=self.warnings.append, part=stage)

    def prepare(self) -> None:
        """The first process."""
        self.part(NO_STAGE)[1].close()

    def train(self, stage: int, *, trackers: Any = None, dies_after: int | None = None) -> None:
        """A stage's process; one that dies loses its quorum after a round."""
        log, mlflow = trackers or self.part(stage)

        def emit(kind: str, values: dict[str, Any]) -> None:
            if kind in ("round", "stage"):
                log.record({"event": kind, "record": values})
            if kind == "round" and values["round"] == dies_after:
                raise QuorumError("too few updates", remedy="fix the clients")

        task = StageTask(
            store=self.bench.store.uri, run_id=self.run.run_id, stage=stage, place=place_of(self.run, cache=None)
        )
        try:
            train_stage(task, launcher=InProcess(self.bench.store), store=self.bench.store, emit=emit_to(emit))
        except QuorumError as error:
            log.record(event_of_failure(str(error)))
        if trackers is None:
            mlflow.close()

    def report(self, *, trackers: Any = None) -> None:
        """The last process."""
        log, mlflow = trackers or self.part(NO_STAGE)
        run = runs.read_run(self.bench.store, self.run.run_id)
        summary = summarise(run, runs.history(self.bench.store, run)[0], wall_s=1.0, complete=True)
        task = RunTask(store=self.bench.store.uri, run_id=run.run_id, place=place_of(run, cache=None))
        InProcess(self.bench.store).server("finish", task, emit=emit_to(lambda kind, values: None))
        record_finish(run, summary, store=self.bench.store, log=log)
        if trackers is None:
            mlflow.close()


class Platform:
    """What Kubeflow's plugin does: a run for the pipeline, one inside it for each task."""

    def __init__(self, client: Any, patch: pytest.MonkeyPatch, name: str) -> None:
        self.client, self.patch = client, patch
        found = client.get_experiment_by_name("KFP-Default")
        self.experiment = found.experiment_id if found else client.create_experiment("KFP-Default")
        tags = {"kfp.pipeline_run_id": f"id-of-{name}", "kfp.pipeline_run_url": f"/#/runs/details/id-of-{name}"}
        self.run = client.create_run(self.experiment, tags=tags, run_name=name).info.run_id
        self.tasks: dict[str, str] = {}
        patch.setenv("KFP_RUN_ID", f"id-of-{name}")

    def task(self, name: str) -> str:
        """Opens a task's run, or opens it again, and hands it on."""
        if name not in self.tasks:
            made = self.client.create_run(self.experiment, tags={"mlflow.parentRunId": self.run}, run_name=name)
            self.tasks[name] = made.info.run_id
            self.client.log_param(self.tasks[name], "stage", '"1"')
        self.client.update_run(self.tasks[name], status="RUNNING")
        self.patch.setenv("MLFLOW_RUN_ID", self.tasks[name])
        return self.tasks[name]


def histories(client: Any, run_id: str, *, clocked: bool = False) -> dict[str, list[tuple[int, float]]]:
    """Returns a run's metrics with all their points."""
    names = client.get_run(run_id).data.metrics
    return {
        name: [(point.step, point.value) for point in client.get_metric_history(run_id, name)]
        for name in names
        if clocked or not name.startswith(CLOCKED)
    }


def tree(client: Any, run_id: str) -> tuple[Any, list[Any]]:
    """Returns the run of an experiment, and those of its stages in order."""
    whole = client.get_run(run_id)
    asked = f"tags.`lwfed.whole` = '{run_id}' and tags.`lwfed.role` = 'stage'"
    found = client.search_runs([whole.info.experiment_id], asked)
    return whole, sorted(found, key=lambda run: int(run.data.tags["lwfed.stage"]))


def check_equal(client: Any, run_id: str, other_id: str) -> None:
    """Checks that two runs of equal work are told alike, and nothing twice."""
    (one, its), (other, others) = tree(client, run_id), tree(client, other_id)
    assert len(its) == len(others) == 2
    for mine, reference in zip([one, *its], [other, *others], strict=True):
        assert histories(client, mine.info.run_id) == histories(client, reference.info.run_id)
        points = client.get_metric_history(mine.info.run_id, "global_round")
        dates = [point.timestamp for point in points]
        assert dates == sorted(set(dates))
    for key in ("lwfed.digest", "lwfed.stage_keys", "lwfed.output_digest.1"):
        assert one.data.tags[key] == other.data.tags[key]
    for mine, reference in zip(its, others, strict=True):
        for key in ("lwfed.stage_key", "lwfed.input_digest", "lwfed.output_digest", "lwfed.plan_digest"):
            assert mine.data.tags[key] == reference.data.tags[key]
    assert {file.path for file in client.list_artifacts(run_id)} == {
        file.path for file in client.list_artifacts(other_id)
    }


@pytest.fixture(scope="module")
def reference(server: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The run of a process that did all of it."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.QUIET.items():
            patch.setenv(name, value)
        patch.setenv("MLFLOW_TRACKING_URI", server)
        experiment = Experiment(tmp_path_factory.mktemp("one"), "one")
        trackers = (_, mlflow) = experiment.part(None)
        for stage in (1, 2):
            experiment.train(stage, trackers=trackers)
        experiment.report(trackers=trackers)
        mlflow.close()
        assert mlflow.status.complete and experiment.warnings == []
        return str(mlflow.status.run_id)


def test_processes_without_a_platform_make_one_tree_even_where_the_server_was_down(
    client: Any, server: str, reference: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KFP_RUN_ID", "abc-123")
    experiment = Experiment(tmp_path, "many")
    experiment.prepare()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", NOBODY)
    experiment.train(1)
    assert len(experiment.warnings) == 1 and NOBODY in experiment.warnings[0]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    experiment.train(2)
    (whole,) = client.search_runs(["1"], "tags.`lwfed.run_id` = 'many' and tags.`lwfed.role` = 'run'")
    assert whole.info.status == "RUNNING" and whole.info.end_time is None
    assert [step for step, _ in histories(client, whole.info.run_id)["train/loss"]] == [1, 2, 3, 4]
    experiment.report()
    check_equal(client, whole.info.run_id, reference)
    whole, stages = tree(client, whole.info.run_id)
    assert {run.info.status for run in (whole, *stages)} == {"FINISHED"}
    assert {run.data.tags["mlflow.parentRunId"] for run in stages} == {whole.info.run_id}
    assert whole.data.tags["kfp.pipeline_run_id"] == "abc-123"
    assert whole.data.tags["lwfed.model"].startswith("lwfed-tiny/")
    assert len(client.search_runs(["1"], "tags.`lwfed.run_id` = 'many'")) == 3
    assert len(experiment.warnings) == 1


def test_the_platforms_runs_are_adopted_and_a_task_that_is_tried_again_adds_nothing(
    client: Any, reference: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    platform = Platform(client, monkeypatch, "run-of-pipeline")
    experiment = Experiment(tmp_path, "adopted")
    platform.task("prepare")
    experiment.prepare()
    first = platform.task("train-stage-1")
    experiment.train(1, dies_after=1)
    assert "too few updates" in client.get_run(first).data.tags["lwfed.failure"]
    client.set_terminated(first, "FAILED")
    platform.task("train-stage-1")
    experiment.train(1)
    before = {run_id: histories(client, run_id, clocked=True) for run_id in (first, platform.run)}
    platform.task("train-stage-1")  # and once more, though it was done
    experiment.train(1)
    after = {run_id: histories(client, run_id, clocked=True) for run_id in (first, platform.run)}
    assert {k: _without_system(v) for k, v in after.items()} == {k: _without_system(v) for k, v in before.items()}
    platform.task("train-stage-2")
    experiment.train(2)
    for _ in range(2):
        platform.task("report")
        experiment.report()
    assert experiment.warnings == []
    assert len(client.search_model_versions(f"run_id = '{platform.run}'")) == 1
    check_equal(client, platform.run, reference)
    whole, stages = tree(client, platform.run)
    assert [run.info.run_id for run in stages] == [platform.tasks["train-stage-1"], platform.tasks["train-stage-2"]]
    assert {run.info.status for run in (whole, *stages)} == {"RUNNING"}  # it is the platform that ends them
    assert "lwfed.failure" not in whole.data.tags and "lwfed.failure" not in stages[0].data.tags
    assert whole.data.params["lwfed.name"] == "tiny" and "stage" not in whole.data.params
    assert client.get_run(platform.tasks["report"]).data.tags["lwfed.role"] == "task"
    assert len(client.search_runs([platform.experiment])) == 5


def _without_system(found: dict[str, Any]) -> dict[str, Any]:
    return {name: points for name, points in found.items() if not name.startswith("system/")}
