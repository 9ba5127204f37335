"""Why a run failed, from what there is: the log of the pod that failed, else what the cluster says of the pod."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from lwfed.types.errors import NotFoundError
from pipelines.follow.reason import why_failed
from pipelines.states.records import Pod, Snapshot, TaskState
from pipelines.tasks import Task

STAGE = Task("train-stage-1", "stage 1", 1)
WORDS = "client-000 runs train-client in a-pod on a-node"
RAISED = "lwfed.types.errors.QuorumError: round 1 is below the quorum -> lwfed retry 1234abcd"


def written(log: str | None) -> Callable[[Pod], str]:
    """Reads the log of any pod; None: there is none."""

    def read(pod: Pod) -> str:
        if log is None:
            raise NotFoundError(f"there is no log of {pod.name}")
        return log

    return read


def failed(message: str, *, is_driver: bool = False) -> Snapshot:
    pod = Pod("node", "pod", "FAILED", is_driver, message=message)
    return Snapshot(tasks=(TaskState(STAGE, "FAILED", pods=(pod,)),))


@pytest.mark.parametrize(
    ("message", "log", "code", "words"),
    [
        ("main: Error (exit code 1)", f"{WORDS}\n{RAISED}\n", 13, "stage 1 failed: round 1 is below the quorum"),
        ("main: Error (exit code 143)", f"{WORDS}\n", 1, "(exit code 143) -> resume with lwfed retry 1234abcd"),
        ("main: OOMKilled (exit code 137)", f"{WORDS}\n", 18, "(exit code 137)"),
        ("main: OOMKilled (exit code 137)", None, 18, "OOMKilled"),
        ("main: Error (exit code 1)", f"{WORDS}\n", 1, WORDS),
        ("main: Error (exit code 1)", None, 1, "there is no log of pod"),
        ("", None, 1, "there is no log of pod"),
    ],
)
def test_the_reason_is_the_logs_else_the_clusters(message: str, log: str | None, code: int, words: str) -> None:
    error = why_failed("1234abcd-0000", failed(message), read=written(log), page="the page")
    assert error.exit_code == code and words in str(error) and str(error).startswith("stage 1 failed")


def test_a_failed_driver_is_named_as_one() -> None:
    log = "F1128 10:00:00.000000 1 main.go:95] failed to resolve inputs\n"
    error = why_failed("1234abcd-0000", failed("main: Error (exit code 1)", is_driver=True), read=written(log), page="")
    assert "stage 1, its driver, failed" in str(error) and "failed to resolve inputs" in str(error)


def test_a_run_without_a_failed_pod_says_what_the_workflow_says() -> None:
    error = why_failed("1234abcd", Snapshot(message="workflow shutdown"), read=written(None), page="the page")
    assert "failed: workflow shutdown" in str(error) and "the page" in str(error)
