"""The stand-in for Kubeflow Pipelines itself: what it replays, what it makes up, what it refuses."""

from __future__ import annotations

import json
import re
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest

from tests.components.kfp_server import State, serving
from tests.components.recorded import DATE, FOLDER, call, recording

RUNS = sorted(path.name.removesuffix(".json.xz") for path in FOLDER.glob("*.json.xz"))


def asked(kfp: State, path: str, method: str = "GET") -> tuple[int, Any]:
    """Asks the server; returns the status, and the answer as JSON where it is that."""
    try:
        with urlopen(Request(kfp.endpoint + path, method=method)) as answer:
            status, body = answer.status, answer.read().decode()
    except HTTPError as error:
        with error:
            status, body = error.code, error.read().decode()
    return status, json.loads(body) if body.startswith("{") else body


@pytest.mark.parametrize("name", RUNS)
def test_recordings_have_no_addresses_of_where_they_were_taken(name: str) -> None:
    text = json.dumps(recording(name))
    assert not re.search(r"\b(10|127|172|192)(\.\d{1,3}){3}\b|docker\.io", text)


@pytest.mark.parametrize("name", RUNS)
def test_a_run_that_is_played_has_ids_and_a_clock_of_its_own(name: str, kfp: State) -> None:
    first, second = kfp.play(name, start=-1), kfp.play(name, start=-1)
    recorded = recording(name)["snapshots"][-1]
    assert len({first, second, recorded["v2beta1"]["run_id"]}) == 3
    for run_id in (first, second):
        run = kfp.runs[run_id]
        for api in ("v2beta1", "v1beta1"):
            _, answer = asked(kfp, f"/apis/{api}/runs/{run_id}")
            shown = json.dumps(answer)
            assert run_id in shown and recorded["v2beta1"]["run_id"] not in shown
            assert recorded["workflow"]["metadata"]["name"] not in shown
            assert max(DATE.findall(shown)) > max(DATE.findall(json.dumps(recorded)))
        manifest = json.loads(answer["pipeline_runtime"]["workflow_manifest"])
        assert manifest["metadata"]["name"] == run.workflow
        assert all(node.startswith(run.workflow) for node in manifest["status"]["nodes"])


def test_a_run_has_no_workflow_and_then_no_state_at_first(kfp: State) -> None:
    run_id = kfp.play("image-not-there")
    seen = []
    for _ in range(3):
        _, new = asked(kfp, f"/apis/v2beta1/runs/{run_id}")
        _, old = asked(kfp, f"/apis/v1beta1/runs/{run_id}")
        manifest = json.loads(old["pipeline_runtime"].get("workflow_manifest", "null"))
        seen.append((new.get("state"), bool(manifest and manifest["status"].get("nodes"))))
    assert seen == [("PENDING", False), (None, False), ("RUNNING", False)]
    assert recording("second-try")["snapshots"][0]["workflow"] is None
    assert asked(kfp, f"/apis/v1beta1/runs/{kfp.play('second-try')}")[1]["pipeline_runtime"] == {}


def test_both_versions_of_the_api_show_the_same_snapshot(kfp: State) -> None:
    run_id = kfp.play("stage-fails")
    for at in range(3):
        for api in ("v2beta1", "v1beta1"):
            asked(kfp, f"/apis/{api}/runs/{run_id}")
            assert kfp.runs[run_id].at == at


def test_it_stays_at_the_last_snapshot(kfp: State) -> None:
    run_id = kfp.play("stage-fails", start=-2)
    states = [asked(kfp, f"/apis/v2beta1/runs/{run_id}")[1]["state"] for _ in range(3)]
    assert states == ["RUNNING", "FAILED", "FAILED"]


def test_errors_are_the_recorded_ones(kfp: State) -> None:
    unknown = "12345678-0000-0000-0000-000000000000"
    status, answer = asked(kfp, f"/apis/v2beta1/runs/{unknown}")
    assert status == 404 and f"Run {unknown} not found" in answer["message"]
    run_id = kfp.play("cached")
    status, answer = asked(kfp, f"/apis/v2beta1/runs/{run_id}:retry", "POST")
    assert status == 409 and run_id in answer["message"]
    status, answer = asked(kfp, f"/apis/v2beta1/runs/{run_id}:terminate", "POST")
    assert status == 400 and "Row not found" in answer["message"] and run_id in answer["message"]
    status, answer = asked(kfp, f"/apis/v1alpha1/runs/{run_id}/nodes/nosuch/log")
    assert status == 200 and run_id in answer["error_message"]
    assert kfp.runs[run_id].workflow in answer["error_message"] and "nosuch" in answer["error_message"]
    assert asked(kfp, f"/apis/v2beta1/runs/{run_id}/nodes/nosuch/artifacts/main-logs:read")[0] == 404
    for path in (f"pipelines/{unknown}/versions/{unknown}", f"recurringruns/{unknown}"):
        status, answer = asked(kfp, f"/apis/v2beta1/{path}")
        assert status == 404 and f"{unknown} not found" in answer["message"]
    assert asked(kfp, f"/apis/v2beta1/runs/{run_id}/nodes/nosuch/log") == (404, {"code": 5, "message": "Not Found"})
    assert not kfp.unseen


def test_pages_of_runs_lead_from_one_to_the_next(kfp: State) -> None:
    runs = [kfp.play("cached") for _ in range(5)]
    query, pages = "/apis/v2beta1/runs?page_size=2&sort_by=created_at+desc", []
    _, page = asked(kfp, query)
    recorded = json.loads(call("runs-first-page").body)
    assert set(page) == set(recorded) and page["total_size"] == 5
    while True:
        pages.append([run["run_id"] for run in page["runs"]])
        if (token := page.get("next_page_token")) is None:
            break
        _, page = asked(kfp, f"{query}&page_token={token}")
    assert [len(page) for page in pages] == [2, 2, 1]
    assert [run for page in pages for run in page] == runs[::-1]


def test_both_paths_of_a_log_lead_to_the_same(kfp: State) -> None:
    run_id = kfp.play("stage-fails", start=-1)
    node = kfp.runs[run_id].pod("train-stage-1")
    _, plain = asked(kfp, f"/apis/v1alpha1/runs/{run_id}/nodes/{node}/log")
    _, wrapped = asked(kfp, f"/apis/v2beta1/runs/{run_id}/nodes/{node}/artifacts/main-logs:read")
    assert "Unschedulable" in plain and f"cpu64-{run_id[:8]}" in plain and set(wrapped) == {"data"}


def test_what_nobody_asked_is_refused() -> None:
    with serving(State()) as kfp:
        assert asked(kfp, "/apis/v2beta1/visualizations/kubeflow", "POST")[0] == 501
        run_id = kfp.play("client-pod-killed", start=-1)  # of which no log was recorded
        assert asked(kfp, f"/apis/v1alpha1/runs/{run_id}/nodes/{kfp.runs[run_id].pod('report')}/log")[0] == 501
        assert len(kfp.refused) == 2
        with pytest.raises(AssertionError, match="no server was asked"):
            kfp.check(unseen=True)


def test_what_was_not_seen_needs_the_marker() -> None:
    with serving(State()) as kfp:
        kfp.check(unseen=False)
        kfp.hides_tasks = True
        assert asked(kfp, f"/apis/v1beta1/runs/{kfp.play('cached')}")[0] == 404
        with pytest.raises(AssertionError, match="not marked `unseen`"):
            kfp.check(unseen=False)
        kfp.check(unseen=True)


def test_what_follows_an_accepted_request_is_recorded(kfp: State) -> None:
    run_id = kfp.play("as-shipped-running", start=5, upto=5)
    asked(kfp, f"/apis/v2beta1/runs/{run_id}:terminate", "POST")
    states = [asked(kfp, f"/apis/v2beta1/runs/{run_id}")[1]["state"] for _ in range(4)]
    assert states == ["CANCELING", "CANCELING", "CANCELING", "FAILED"]
    run_id = kfp.play("as-shipped-importer-fails", upto=0)
    asked(kfp, f"/apis/v2beta1/runs/{run_id}:retry", "POST")
    assert [asked(kfp, f"/apis/v2beta1/runs/{run_id}")[1]["state"] for _ in range(2)] == ["RUNNING", "FAILED"]
