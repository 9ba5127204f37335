"""The log of a pod while it runs: streamed by the cluster, each line once, whatever breaks on the way."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from lwfed.types.errors import NotFoundError
from pipelines.client.connection import Access
from pipelines.client.runs import open_run
from pipelines.logs import PodLogs, unwrapped
from pipelines.states.records import Pod
from pipelines.states.workflow import read_states
from tests.components.cluster_server import Objects
from tests.components.kfp_server import State
from tests.components.scenes import QUICK


@pytest.fixture
def running(kfp: State) -> tuple[PodLogs, Pod]:
    """The pod of a stage that trains."""
    run_id = kfp.play("as-shipped-running", start=5, upto=5)
    run, found = open_run(Access(endpoint=kfp.endpoint), run_id)
    pod = next(pod for pod in read_states(run, found).pods if pod.state == "RUNNING" and not pod.is_driver)
    return PodLogs(run), pod


def answers(*values: bool) -> Iterator[bool]:
    yield from values
    while True:
        yield values[-1]


@pytest.mark.parametrize(
    "streams",
    [
        ["one\ntwo\nthree\n"],
        ["one\n", "one\ntwo\n", "one\ntwo\nthree\n"],  # the connection ends while the pod runs, twice
        ["", "one\ntwo\n"],
    ],
)
def test_each_line_comes_once_however_often_the_stream_ends(
    streams: list[str], running: tuple[PodLogs, Pod], cluster: Objects
) -> None:
    logs, pod = running
    cluster.streams, cluster.logs = {pod.name: streams}, {pod.name: "one\ntwo\nthree\n"}
    goes_on = answers(*[True] * len(streams), False)
    assert list(logs.follow(pod, runs=lambda: next(goes_on), pace=QUICK)) == ["one", "two", "three"]


def test_a_pod_that_is_gone_has_no_log(running: tuple[PodLogs, Pod], cluster: Objects) -> None:
    logs, pod = running
    goes_on = answers(True, False)
    with pytest.raises(NotFoundError, match=r"there is no log of"):
        list(logs.follow(pod, runs=lambda: next(goes_on), pace=QUICK))


def test_a_cluster_that_does_not_let_us_read_is_named_at_once(running: tuple[PodLogs, Pod], cluster: Objects) -> None:
    logs, pod = running
    cluster.forbids = True
    with pytest.raises(NotFoundError, match="forbidden"):
        list(logs.follow(pod, runs=lambda: True, pace=QUICK))
    assert len([asked for asked in cluster.asked if "/log" in asked]) == 1


def test_without_a_cluster_a_running_pods_log_is_out_of_reach(running: tuple[PodLogs, Pod]) -> None:
    logs, pod = running
    with pytest.raises(NotFoundError, match="the cluster is not reachable") as missing:
        logs.read(pod)
    assert f"kubectl -n kubeflow logs {pod.name}" in str(missing.value)


def test_an_error_in_json_is_no_log() -> None:
    assert unwrapped(b'{"error_message":"BadRequestError: no","error_details":"no"}') == ""
    assert unwrapped(b'{"data":"b25lCg=="}') == "one\n"
    assert unwrapped(b'{"event": "failed"}\n') == '{"event": "failed"}\n'
