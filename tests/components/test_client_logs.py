"""`lwfed logs` of tasks, of their pods and of clients, over HTTP."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from lwfed.launch.kubernetes.names import CLIENTS_NOTE
from lwfed.store import paths
from lwfed.store.opening import open_store
from tests.components.cluster_server import Objects, pod
from tests.components.conftest import Command
from tests.components.kfp_server import State
from tests.components.scenes import DIGEST, QUICK, TRACE

PARTS = {
    "prepare": "prepare", "train_stage_1": "stage 1: image 0, text 0", "train_stage_2": "stage 2: image 1, text 1",
    "evaluate": "evaluate", "report": "report", "cleanup": "clean up",
}  # fmt: skip
"""The tasks of the recorded run with two stages, and what people call them."""


either_way = pytest.mark.parametrize(
    "is_ui",
    [pytest.param(False, id="API"), pytest.param(True, id="through the web pages' server", marks=pytest.mark.unseen)],
)


def heads(out: str) -> list[str]:
    """Returns the lines that say whose log follows."""
    return [line.removeprefix("-- ") for line in out.splitlines() if line.startswith("-- ")]


@either_way
def test_logs_of_tasks_come_in_their_order(is_ui: bool, lwfed: Command, kfp: State) -> None:
    run_id = kfp.play("as-shipped-importer-fails", start=-1)
    kfp.is_ui = is_ui
    kfp.write(run_id, importer="no such parameter\n", **{name: f"{name} 1\n{name} 2\n" for name in PARTS})
    ended = lwfed("logs", run_id)
    assert ended.code == 0, ended.err
    wanted = list(PARTS.values())
    assert [title for head in heads(ended.out) for title in wanted if head.startswith(title)] == wanted
    assert [line for line in ended.out.splitlines() if line.startswith("train_")] == [
        "train_stage_1 1", "train_stage_1 2", "train_stage_2 1", "train_stage_2 2",
    ]  # fmt: skip
    one = lwfed("logs", run_id, "--stage", "2")
    assert one.out.splitlines()[1:] == ["train_stage_2 1", "train_stage_2 2"]


@pytest.mark.unseen
def test_the_log_of_a_pod_that_runs_comes_through_the_web_pages_server(lwfed: Command, kfp: State) -> None:
    run_id = kfp.play("as-shipped-running", start=5, upto=5)
    kfp.is_ui = True
    kfp.write(run_id, train_stage_1="round 1\n")
    ended = lwfed("logs", run_id, "--stage", "1")
    assert ended.code == 0 and ended.out.splitlines()[1:] == ["round 1"]


def test_the_api_has_no_log_of_a_pod_that_runs(lwfed: Command, kfp: State) -> None:
    """It answers 200 with an error in JSON."""
    run_id = kfp.play("live-log", start=3, upto=3)
    ended = lwfed("logs", run_id)
    assert ended.code == 0 and "Kubeflow Pipelines has no log of" in ended.err and "KUBECONFIG" in ended.err
    assert not ended.out and "BadRequestError" not in ended.err


def test_logs_that_are_not_there_are_told(lwfed: Command, kfp: State) -> None:
    kfp.play("as-shipped-running", upto=0)
    ended = lwfed("logs", "latest")
    assert ended.code == 19 and "--follow" in ended.error
    ended = lwfed("logs", "latest", "--stage", "3")
    assert ended.code == 19 and "1, 2" in ended.error


@either_way
def test_followed_logs_are_told_once_and_end_as_the_run(
    is_ui: bool, lwfed: Command, kfp: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.client.pace.USUAL", QUICK)
    run_id = kfp.play("stage-fails")
    kfp.is_ui = is_ui
    kfp.write(run_id, prepare="p1\n", train_stage_1=TRACE, cleanup="c1\n")
    ended = lwfed("logs", "latest", "--follow")
    assert ended.code == 13 and "below the quorum" in ended.error
    lines = ended.out.splitlines()
    assert lines.count("p1") == 1 and lines.count(TRACE.splitlines()[-1]) == 1


STORE = "s3://lwfed/experiments"
"""Where the recorded runs kept what they made."""


@pytest.fixture
def training(stored: None, kfp: State, cluster: Objects) -> Iterator[str]:
    """A run with pods of two clients and of the server; yields lwfed's id of it."""
    name = f"asis-{kfp.play('as-shipped-running', start=5, upto=5)[:8]}"
    notes = {CLIENTS_NOTE: "client-000,client-001"}
    cluster.jobs.append({"metadata": {"name": "lwfed-abab-r002-train-clients-a1", "annotations": notes, "uid": "1"}})
    for number in (0, 1):
        labels = {
            "app.kubernetes.io/managed-by": "lwfed", "lwfed/run": name, "lwfed/step": "train-client",
            "lwfed/stage-key": DIGEST[:8], "lwfed/round": "2",
            "batch.kubernetes.io/job-name": "lwfed-abab-r002-train-clients-a1",
            "batch.kubernetes.io/job-completion-index": str(number),
        }  # fmt: skip
        made = pod(f"train-{number}", labels, phase="Running")
        command = ["lwfed", "step", "train-client", "--store", STORE, "--job", "lwfed-abab-r002-train-clients-a1"]
        made["spec"]["containers"] = [{"name": "lwfed", "command": command}]
        cluster.pods.append(made)
        cluster.logs[f"train-{number}"] = f"step 1 of {number}\n"
    yield name


def test_logs_of_a_client_come_from_its_pods(training: str, lwfed: Command, cluster: Objects) -> None:
    ended = lwfed("logs", training, "--client", "client-001")
    assert ended.code == 0, ended.err
    assert ended.out.splitlines() == ["-- round 2, train-client of client-001  (train-1, running)", "step 1 of 1"]
    assert any("container=lwfed" in ask for ask in cluster.asked)
    ended = lwfed("logs", training, "--client", "client-007")
    assert ended.code == 19 and "client-000, client-001" in ended.error

    store = open_store(STORE)
    data = {"source": "shapes", "version": "", "num_train": 1, "num_test": 1}
    stages = [{"stage": 1, "key": "00" * 32}, {"stage": 2, "key": DIGEST}]
    store.write_ref(paths.run(training), {"run_id": training, "spec": {}, "data": data, "stages": stages})
    assert lwfed("logs", training, "--client", "client-000", "--stage", "2").code == 0
    assert lwfed("logs", training, "--client", "client-000", "--stage", "1").code == 19
    cluster.pods = []
    assert "kubernetes.job_ttl_s" in lwfed("logs", training, "--client", "client-000").error
    cluster.forbids = True
    assert lwfed("logs", training, "--client", "client-000").code == 17
