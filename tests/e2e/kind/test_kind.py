"""The trial on a kind cluster with Kubeflow Pipelines: what README.md beside it does by hand."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.e2e.command import Ended, lwfed

ENDPOINT = os.environ.get("LWFED_KFP_ENDPOINT", "")
SPEC = Path(os.environ.get("LWFED_KIND_SPEC") or Path(__file__).parents[3] / "k8s/overlays/kind/experiment.yaml")
WITHIN_S = 900.0

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.slow,
    pytest.mark.skipif(
        not ENDPOINT, reason="LWFED_KFP_ENDPOINT names no Kubeflow Pipelines: tests/e2e/kind/up.sh brings one up"
    ),
    pytest.mark.skipif(not shutil.which("kubectl"), reason="there is no kubectl"),
]


@pytest.fixture(scope="module")
def experiment() -> dict[str, Any]:
    """The experiment of the overlay."""
    values = yaml.safe_load(SPEC.read_text(encoding="utf-8"))
    assert isinstance(values, dict)
    return values


@pytest.fixture(scope="module")
def base(experiment: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A run from its first stage to its report, waited for."""
    ended = on_cluster("submit", SPEC, "--fresh", "--wait", "--json", cwd=tmp_path_factory.mktemp("base"))
    assert ended.code == 0, ended.err
    return ended.json


@pytest.fixture(scope="module")
def reference(experiment: dict[str, Any]) -> str:
    """The digest of `lwfed run` in one pod: the cluster's build and processor, and nothing else of it."""
    name = f"lwfed-reference-{uuid.uuid4().hex[:6]}"
    run = (
        "cat > /tmp/spec.yaml && cd /tmp && lwfed run spec.yaml -o launch.kind=in_process -o store.uri=/tmp/runs "
        "-o tracking.uri=null --json"
    )
    said = kubectl(
        experiment, "run", name, f"--image={experiment['kubernetes']['image']}", "--image-pull-policy=IfNotPresent",
        "--restart=Never", "--rm", "--stdin", "--quiet", "--env=HOME=/tmp", "--pod-running-timeout=5m", "--command",
        "--", "sh", "-c", run, text=SPEC.read_text(encoding="utf-8"),
    )  # fmt: skip
    line = next(line for line in reversed(said.splitlines()) if line.startswith("{"))
    return str(json.loads(line)["digest"])


def on_cluster(*arguments: str | Path, cwd: Path) -> Ended:
    """Runs a command against the trial's Kubeflow Pipelines."""
    return lwfed(*arguments, "--endpoint", ENDPOINT, cwd=cwd)


def kubectl(experiment: dict[str, Any], *arguments: str, text: str | None = None) -> str:
    """Runs kubectl in the experiment's namespace."""
    command = ["kubectl", "-n", experiment["kubernetes"]["namespace"], *arguments]
    done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=WITHIN_S)
    assert done.returncode == 0, done.stderr
    return done.stdout


def pods_of(experiment: dict[str, Any], run_id: str, *more: str) -> list[dict[str, Any]]:
    """Returns the clients' and the server's pods of a run."""
    labels = ",".join([f"lwfed/run={run_id}", *more])
    items = json.loads(kubectl(experiment, "get", "pods", "-l", labels, "-o", "json"))["items"]
    return [pod for pod in items if not pod["metadata"].get("deletionTimestamp")]


def until(happened: Callable[[], Any], *, what: str) -> Any:
    """Waits for something of the cluster."""
    ends_at = time.monotonic() + WITHIN_S
    while not (found := happened()):
        assert time.monotonic() < ends_at, f"no {what} within {WITHIN_S:g} s"
        time.sleep(1)
    return found


def started(*options: str, cwd: Path) -> dict[str, Any]:
    """Starts a run that trains again."""
    ended = on_cluster("submit", SPEC, "--fresh", "--json", *options, cwd=cwd)
    assert ended.code == 0, ended.err
    return ended.json


def running(experiment: dict[str, Any], run_id: str, *labels: str) -> list[str]:
    """Names the pods that run."""
    pods = pods_of(experiment, run_id, "lwfed/step=train-client", *labels)
    return [pod["metadata"]["name"] for pod in pods if pod["status"].get("phase") == "Running"]


def digest_in_store(run_id: str, experiment: dict[str, Any], *, cwd: Path) -> str:
    """Reads what came of a run."""
    ended = lwfed("show", run_id, "--store", experiment["store"]["uri"], "--json", cwd=cwd)
    assert ended.code == 0, ended.err
    return str(ended.json["digest"])


def test_pipeline_ends_in_the_digest_of_lwfed_run(base: dict[str, Any], reference: str) -> None:
    assert base["state"] == "SUCCEEDED" and len(base["stages"]) == 3
    assert base["digest"] == reference


def test_a_killed_client_pod_changes_nothing(experiment: dict[str, Any], reference: str, tmp_path: Path) -> None:
    run = started(cwd=tmp_path)
    pods = until(lambda: running(experiment, run["run_id"], "lwfed/round=2"), what="client pod of round 2")
    kubectl(experiment, "delete", "pod", pods[0], "--grace-period=0", "--force")
    ended = on_cluster("logs", run["kfp_run_id"], "--follow", cwd=tmp_path)
    assert ended.code == 0, ended.err
    assert digest_in_store(run["run_id"], experiment, cwd=tmp_path) == reference


def test_cancel_leaves_no_job_behind(experiment: dict[str, Any], tmp_path: Path) -> None:
    run = started(cwd=tmp_path)
    until(lambda: running(experiment, run["run_id"]), what="client pod")
    ended = on_cluster("cancel", run["kfp_run_id"], "--json", cwd=tmp_path)
    assert ended.code == 0, ended.err
    assert ended.json["terminated"] and ended.json["state"] == "FAILED" and ended.json["jobs_deleted"] >= 1
    until(lambda: not pods_of(experiment, run["run_id"]), what="end of its pods")
    jobs = json.loads(kubectl(experiment, "get", "jobs", "-l", f"lwfed/run={run['run_id']}", "-o", "json"))
    assert jobs["items"] == []
    ended = on_cluster("logs", run["kfp_run_id"], "--follow", cwd=tmp_path)
    assert ended.code == 1 and "the run was cancelled" in ended.err


def test_a_stage_is_trained_again_alone(base: dict[str, Any], experiment: dict[str, Any], tmp_path: Path) -> None:
    ended = on_cluster(
        "rerun", base["run_id"], "--stage", "3", "--store", experiment["store"]["uri"], "--wait", "--json",
        cwd=tmp_path,
    )  # fmt: skip
    assert ended.code == 0, ended.err
    trained = {row["stage"] for row in ended.json["tasks"]} - {None}
    assert trained == {3} and ended.json["digest"] == base["digest"]
