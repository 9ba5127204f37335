"""`lwfed retry` and `lwfed cancel` of runs that are there, over HTTP."""

from __future__ import annotations

from typing import Any

import pytest

from pipelines.client.connection import Access
from pipelines.client.errors import RefusedError
from pipelines.client.runs import open_run
from pipelines.commands.retry import request_retry
from tests.components.cluster_server import Objects, pod
from tests.components.conftest import Command
from tests.components.kfp_server import State
from tests.components.scenes import QUICK, TRACE

# --- retry ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "after"), [("stage-fails", "failed-then-retried"), ("secret-missing", "secret-there")]
)
def test_retry_goes_on_to_the_end_that_comes_after(
    before: str, after: str, lwfed: Command, kfp: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.client.pace.USUAL", QUICK)
    run_id = kfp.play(before, start=-1, retried=after)
    ended = lwfed("retry", run_id[:8], "--wait", "--json")
    assert ended.code == 0, ended.err
    assert ended.json["state"] == "SUCCEEDED" and ended.json["kfp_run_id"] == run_id
    assert f"POST /apis/v2beta1/runs/{run_id}:retry" in kfp.asked


def test_retry_that_fails_again_says_why(kfp: State, lwfed: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.client.pace.USUAL", QUICK)
    run_id = kfp.play("stage-fails", start=-1, retried="stage-fails")
    kfp.write(run_id, train_stage_1=TRACE)
    ended = lwfed("retry", run_id, "--wait")
    assert ended.code == 13 and "below the quorum" in ended.error


def test_retry_of_what_did_not_fail_is_refused(lwfed: Command, kfp: State) -> None:
    kfp.play("cached")
    ended = lwfed("retry", "latest")
    assert ended.code == 1 and "is SUCCEEDED" in ended.error and "lwfed rerun" in ended.error
    kfp.play("as-shipped-running", start=5, upto=5)
    ended = lwfed("retry", "latest")
    assert "only failed runs" in ended.error and "lwfed cancel" in ended.error
    assert not any(":retry" in ask for ask in kfp.asked)


def test_what_kubeflow_says_of_a_retry_is_passed_on(kfp: State) -> None:
    run, found = open_run(Access(endpoint=kfp.endpoint), kfp.play("cached"))
    assert found.state == "SUCCEEDED"  # so the command itself would not ask
    with pytest.raises(RefusedError, match=r"\(409\): .*Workflow must be Failed/Error to retry") as refused:
        request_retry(run)
    assert "submit the experiment again" in str(refused.value)


def test_a_run_that_is_not_there_is_told(lwfed: Command, kfp: State) -> None:
    kfp.play("stage-fails", start=-1, title="mine")
    for name in ("nothing", "00000000-0000-0000-0000-000000000000", "tiny-00000000"):
        ended = lwfed("retry", name)
        assert ended.code == 19 and name in ended.error
    kfp.play("stage-fails", start=-1, title="mine")
    assert "2 runs are named mine" in lwfed("retry", "mine").error


def test_a_run_is_found_on_a_later_page(lwfed: Command, kfp: State, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.client.runs.PAGE", 2)
    kfp.play("cached", title="mine")
    for _ in range(4):
        kfp.play("cached")
    assert "is SUCCEEDED" in lwfed("retry", "mine").error
    pages = [ask for ask in kfp.asked if ask.startswith("GET /apis/v2beta1/runs?")]
    assert len(pages) == 3 and ["page_token=" in ask for ask in pages] == [False, True, True]


# --- cancel -----------------------------------------------------------------------------------------------------------


def job(name: str, run: str) -> dict[str, Any]:
    labels = {"app.kubernetes.io/managed-by": "lwfed", "lwfed/run": run}
    return {"metadata": {"name": name, "uid": f"uid-{name}", "labels": labels}, "spec": {}}


def training(kfp: State) -> tuple[str, str]:
    """Plays a run whose stage 1 trains; returns its id, and lwfed's."""
    run_id = kfp.play("as-shipped-running", start=5, upto=5)
    return run_id, f"asis-{run_id[:8]}"


def test_cancel_terminates_then_deletes_the_jobs_of_that_run(lwfed: Command, kfp: State, cluster: Objects) -> None:
    run_id, name = training(kfp)
    cluster.jobs = [job("lwfed-1-a1", name), job("lwfed-2-a1", name), job("lwfed-3-a1", "another")]
    ended = lwfed("cancel", name, "--json")
    assert ended.code == 0, ended.err
    assert ended.json["terminated"] and ended.json["state"] == "FAILED" and ended.json["jobs_deleted"] == 2
    assert [item["metadata"]["name"] for item in cluster.jobs] == ["lwfed-3-a1"]
    assert f"POST /apis/v2beta1/runs/{run_id}:terminate" in kfp.asked
    assert all("/namespaces/kubeflow/" in ask for ask in cluster.asked if "jobs" in ask)

    again = lwfed("cancel", name, "--json")
    assert again.code == 0 and not again.json["terminated"] and again.json["jobs_deleted"] == 0
    assert "already ended: FAILED" in again.err


def test_cancel_leaves_nothing_that_a_dying_coordinator_made_or_that_waits_for_ever(
    lwfed: Command, kfp: State, cluster: Objects
) -> None:
    run_id, name = training(kfp)
    cluster.jobs, cluster.made_again = [job("lwfed-1-a1", name)], [job("lwfed-1-a2", name)]
    mine, other = {"pipeline/runid": run_id}, {"pipeline/runid": "another"}
    cluster.pods = [
        pod("exit-task", mine), pod("stage", mine, phase="Failed"), pod("of-another-run", other),
    ]  # fmt: skip
    ended = lwfed("cancel", name, "--json")
    assert ended.code == 0, ended.err
    assert (ended.json["jobs_deleted"], cluster.jobs) == (2, [])
    assert ended.json["pods_deleted"] == ["exit-task"] and "exit-task" in ended.err
    assert [item["metadata"]["name"] for item in cluster.pods] == ["stage", "of-another-run"]


def test_cancel_names_a_cluster_that_does_not_let_us(lwfed: Command, kfp: State, cluster: Objects) -> None:
    _, name = training(kfp)
    cluster.forbids = True
    ended = lwfed("cancel", name, "--json")
    assert (
        ended.code == 17 and f"Jobs of {name} may keep running" in ended.error and "kubectl -n kubeflow" in ended.error
    )
    assert ended.json["terminated"]


def test_a_run_that_ends_while_it_is_cancelled_is_over(lwfed: Command, kfp: State, cluster: Objects) -> None:
    run_id = kfp.play("client-pod-killed", start=-2, hold_s=60)
    kfp.before_terminate = lambda run: run.end()
    ended = lwfed("cancel", run_id, "--json")
    assert ended.code == 0, ended.err
    assert any(":terminate" in ask for ask in kfp.asked) and not ended.json["terminated"]
    assert ended.json["state"] == "SUCCEEDED" and "already ended" in ended.err


def test_cancel_without_a_cluster_says_what_may_go_on(lwfed: Command, kfp: State) -> None:
    _, name = training(kfp)
    ended = lwfed("cancel", "latest", "--json")
    assert ended.code == 0 and "KUBECONFIG names no cluster" in ended.err
    assert f"kubectl -n kubeflow delete jobs -l 'app.kubernetes.io/managed-by=lwfed,lwfed/run={name}'" in ended.err
    assert ended.json["terminated"] and ended.json["jobs_deleted"] is None


def test_a_cancelled_run_is_told_apart_from_a_failed_one(kfp: State, lwfed: Command) -> None:
    run_id, _ = training(kfp)
    kfp.write_all(run_id)
    kfp.write(run_id, train_stage_1=TRACE)
    lwfed("cancel", run_id)
    ended = lwfed("logs", run_id, "--follow")
    assert ended.code == 1 and "the run was cancelled" in ended.error and "quorum" not in ended.error
