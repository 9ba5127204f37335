"""`lwfed logs` of tasks, of their pods and of clients, over HTTP."""

from __future__ import annotations

import io
from collections.abc import Iterator

import pytest
from rich.console import Console

from lwfed.launch.kubernetes_names import CLIENTS_NOTE
from lwfed.spec.load import load_spec
from lwfed.store import paths
from lwfed.store.opening import open_store
from lwfed.types.errors import LwfedError
from pipelines.client import Access
from pipelines.client_logs import task_logs
from tests.components.cluster_server import Objects, pod
from tests.components.conftest import Command
from tests.components.kfp_server import State, failing, pod_of, stuck
from tests.components.scenes import DIGEST, TRACE, failed, running


def test_logs_of_tasks_come_in_their_order(lwfed: Command, kfp: State, spec: str) -> None:
    run_id = failed(kfp)
    kfp.logs = {"prepare": "p1\np2\n", "train-stage-1": "s1\n", "train-stage-2": "s2\n", "prepare-driver": "no\n"}
    for kfp.pods_gone, kfp.is_ui in ((False, False), (True, False), (False, True)):
        ended = lwfed("logs", run_id)
        assert ended.code == 0, ended.err
        assert ended.out.splitlines() == [
            f"-- prepare  ({pod_of(run_id, 'prepare')})", "p1", "p2",
            f"-- stage 1: image 0, text 0  ({pod_of(run_id, 'train-stage-1')})", "s1",
            f"-- stage 2: image 1, text 1  ({pod_of(run_id, 'train-stage-2')})", "s2",
        ]  # fmt: skip
        assert "clean up" in ended.err  # which has none
    one = lwfed("logs", run_id, "--stage", "2")
    assert one.out.splitlines()[1:] == ["s2"]


@pytest.mark.parametrize("is_ui", [False, True], ids=["API", "through the web pages' server"])
def test_logs_of_a_pod_that_runs_come_from_the_pod(is_ui: bool, lwfed: Command, kfp: State) -> None:
    run_id, _ = running(kfp)
    kfp.is_ui, kfp.logs = is_ui, {"train-stage-2": "round 1\n"}
    ended = lwfed("logs", run_id, "--stage", "2")
    assert ended.code == 0 and ended.out.splitlines()[1:] == ["round 1"]


def test_logs_that_are_not_there_are_told(lwfed: Command, kfp: State, spec: str) -> None:
    kfp.add_run(stuck())
    ended = lwfed("logs", "latest")
    assert ended.code == 19 and "--follow waits for it" in ended.error
    ended = lwfed("logs", "latest", "--stage", "3")
    assert ended.code == 19 and "its stages: 1, 2" in ended.error


@pytest.mark.parametrize("is_ui", [False, True], ids=["API", "through the web pages' server"])
def test_followed_logs_are_told_once_and_end_as_the_run(is_ui: bool, kfp: State) -> None:
    kfp.is_ui = is_ui
    kfp.add_run([*stuck(), *failing("train-stage-1")])
    kfp.logs = {"prepare": "p1\n", "train-stage-1": TRACE}
    lines: list[str] = []
    with pytest.raises(LwfedError, match="below the quorum") as ended:
        task_logs(
            Access(endpoint=kfp.endpoint), "latest", stage=None, follow=True, write=lines.append,
            console=Console(file=io.StringIO()), poll_s=0.01,
        )  # fmt: skip
    assert ended.value.exit_code == 13
    assert lines.count("p1") == 1 and lines.count(TRACE.splitlines()[-1]) == 1


@pytest.fixture
def training(stored: None, kfp: State, cluster: Objects, spec: str) -> Iterator[str]:
    """A run with pods of two clients and of the server; gives lwfed's id of it."""
    _, name = running(kfp)
    store = load_spec(spec).store.uri
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
        command = ["lwfed", "step", "train-client", "--store", store, "--job", "lwfed-abab-r002-train-clients-a1"]
        made["spec"]["containers"] = [{"name": "lwfed", "command": command}]
        cluster.pods.append(made)
        cluster.logs[f"train-{number}"] = f"step 1 of {number}\n"
    yield name


def test_logs_of_a_client_come_from_its_pods(training: str, lwfed: Command, cluster: Objects, spec: str) -> None:
    ended = lwfed("logs", training, "--client", "client-001")
    assert ended.code == 0, ended.err
    assert ended.out.splitlines() == ["-- round 2, train-client of client-001  (train-1, running)", "step 1 of 1"]
    assert any("container=lwfed" in ask for ask in cluster.asked)
    ended = lwfed("logs", training, "--client", "client-007")
    assert ended.code == 19 and "there are pods of client-000, client-001" in ended.error

    store = open_store(load_spec(spec).store.uri)
    store.write_ref(paths.run(training), {"stages": [{"stage": 1, "key": "00" * 32}, {"stage": 2, "key": DIGEST}]})
    assert lwfed("logs", training, "--client", "client-000", "--stage", "2").code == 0
    assert lwfed("logs", training, "--client", "client-000", "--stage", "1").code == 19
    cluster.pods = []
    assert "kubernetes.job_ttl_s" in lwfed("logs", training, "--client", "client-000").error
    cluster.forbids = True
    assert lwfed("logs", training, "--client", "client-000").code == 17
