"""A whole run in a real cluster ends in the digest of a laptop, though a client and the coordinator are killed.

The coordinator is a Job with the rights of k8s/base; each client is a pod on a GPU with its own credentials.
"""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from lwfed.environment import quiet
from lwfed.run import runs
from lwfed.spec.load import to_values
from lwfed.spec.run import RunSpec
from lwfed.store import paths
from lwfed.store.opening import open_store
from lwfed.store.protocol import Store
from tests.cluster.bed import BASE_IMAGE, GPU, PATIENCE, REPO, Bed, environment, folders, pool, until
from tests.s3 import PASSWORD, USER, Server, free_port
from tests.tiny import run_tiny

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

NUM_CLIENTS = 4
EXPERIMENT = (f"federation.num_clients={NUM_CLIENTS}", "stages.rounds=[3,1]", "training.local_epochs=60")
COORDINATOR = "coordinator"


@pytest.fixture(scope="module")
def rights(bed: Bed) -> None:
    """Who the pods are, and what the coordinator may do: k8s/base as it is, in the tests' namespace."""
    rendered = list(yaml.safe_load_all(bed.run("kustomize", str(REPO / "k8s/base"))))
    for manifest in rendered:
        manifest["metadata"]["namespace"] = bed.namespace
        for subject in manifest.get("subjects") or ():
            subject["namespace"] = bed.namespace
    bed.apply(*rendered)


@pytest.fixture
def credentials(bed: Bed, minio: Server, uri: str, tmp_path: Path) -> None:
    """One user of the store and one Secret a client, made by the command for it."""
    if minio.kind != "minio":
        pytest.skip("needs MinIO: `.ci/minio` builds it")
    folder = tmp_path / "secrets"
    lwfed(
        "store", "init", uri, "--clients", str(NUM_CLIENTS), "--namespace", bed.namespace, "--output", str(folder),
        "--endpoint", minio.endpoint, "--admin-user", USER, "--admin-password", PASSWORD, "--rotate",
    )  # fmt: skip
    for path in sorted(folder.glob("*.yaml")):
        bed.run("apply", "-f", str(path))


@pytest.fixture
def mlflow(bed: Bed, tmp_path: Path) -> Iterator[str]:
    """A real MLflow server; yields its address."""
    port = free_port(bed.address)
    command = [
        sys.executable, "-m", "mlflow", "server", "--host", bed.address, "--port", str(port), "--workers", "1",
        "--backend-store-uri", f"sqlite:///{tmp_path}/mlflow.db",
        "--artifacts-destination", str(tmp_path / "artifacts"),
    ]  # fmt: skip
    with (tmp_path / "mlflow.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    address = f"http://{bed.address}:{port}"

    def answers() -> bool:
        try:
            with urllib.request.urlopen(f"{address}/health", timeout=2) as answer:
                return bool(answer.status == 200)
        except OSError:
            assert process.poll() is None, (tmp_path / "mlflow.log").read_text()[-2000:]
            return False

    try:
        until(answers, within_s=120, what="MLflow answers")
        yield address
    finally:
        subprocess.run(["kill", "--", f"-{process.pid}"], check=False)
        process.wait(timeout=30)


def lwfed(*arguments: str) -> str:
    """Calls the command; returns what it prints."""
    ended = subprocess.run(
        [sys.executable, "-m", "lwfed", *arguments], capture_output=True, text=True, check=False, timeout=300
    )
    assert ended.returncode == 0, ended.stderr[-2000:]
    return ended.stdout


def silos(**settings: Any) -> list[dict[str, Any]]:
    """A pool a client: a GPU and credentials of its own."""
    return [
        pool(f"silo-{n}", clients=[f"client-00{n}"], gpus=1, secret=f"lwfed-store-client-00{n}", **settings)
        for n in range(NUM_CLIENTS)
    ]


def spec_of(bed: Bed, uri: str, *overrides: str, pools: Sequence[dict[str, Any]], tracking: str | None) -> RunSpec:
    """The experiment; pods have the server's address and no credentials but those of their Secret."""
    kubernetes = {
        "env": environment(), "pools": pools, "server": pool("server", secret="lwfed-store-server"),
        "service_account": "lwfed-worker", "heartbeat_timeout_s": 60 * PATIENCE,
    }  # fmt: skip
    spec = bed.spec(uri, *EXPERIMENT, *overrides, kubernetes=kubernetes)
    values = to_values(spec)
    values["tracking"] = {"uri": tracking, "experiment": "cluster"}
    return RunSpec.model_validate(values)


def coordinator_job(bed: Bed, spec: RunSpec, run_id: str) -> dict[str, Any]:
    """The Job of a coordinator, as a workflow has it: it is started again where its pod is lost."""
    volumes = folders()
    env = [{"name": name, "value": value} for name, value in environment().items()]
    fields = {"POD_NAME": "metadata.name"}
    container = {
        "name": "main",
        "image": BASE_IMAGE,
        "imagePullPolicy": "Never",
        "command": ["lwfed", "run", "/spec/spec.yaml", "--run-id", run_id, "--json"],
        "env": [*env, *({"name": k, "valueFrom": {"fieldRef": {"fieldPath": v}}} for k, v in fields.items())],
        "envFrom": [{"secretRef": {"name": "lwfed-store-server"}}],
        "volumeMounts": [
            {"name": "spec", "mountPath": "/spec"},
            *({"name": v["name"], "mountPath": v["mount_path"], "readOnly": True} for v in volumes),
        ],
    }
    template = {
        "spec": {
            "serviceAccountName": "lwfed-coordinator",
            "restartPolicy": "Never",
            "containers": [container],
            "volumes": [
                {"name": "spec", "configMap": {"name": run_id}},
                *({"name": v["name"], "persistentVolumeClaim": {"claimName": v["claim"]}} for v in volumes),
            ],
        }
    }
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": f"{COORDINATOR}-{run_id}", "namespace": bed.namespace},
        "spec": {"backoffLimit": 3, "template": template},
    }


@contextmanager
def coordinating(bed: Bed, spec: RunSpec, run_id: str) -> Iterator[str]:
    """Starts a coordinator in the cluster; returns its Job's name."""
    text = yaml.safe_dump(to_values(spec))
    bed.apply({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": run_id}, "data": {"spec.yaml": text}})
    job = coordinator_job(bed, spec, run_id)
    bed.apply(job)
    try:
        yield str(job["metadata"]["name"])
    finally:
        bed.run("delete", "job", job["metadata"]["name"], "--wait=false", check=False)


def wait_for_end(bed: Bed, job: str, *, within_s: float) -> str:
    """Waits until a coordinator's Job is over; gives `Complete` or `Failed`."""

    def look() -> str | None:
        status = json.loads(bed.run("get", "job", job, "-o", "json"))["status"]
        kinds = [c["type"] for c in status.get("conditions") or () if c["status"] == "True"]
        return next((kind for kind in kinds if kind in ("Complete", "Failed")), None)

    return until(look, within_s=within_s, what=f"the end of {job}")


def log_of(bed: Bed, job: str) -> str:
    """Returns the log of a coordinator's last pod."""
    return bed.run("logs", f"job/{job}", "--tail=-1", check=False)


def round_is(bed: Bed, store: Store, run_id: str, stage: int, server_round: int) -> str:
    """Waits until a round's clients are at work; returns the stage's key."""

    def look() -> str | None:
        run = runs.find_run(store, run_id)
        key = None if run is None else runs.stage_key_of(run, stage)
        if key is None or store.read_ref(paths.round_task(key, server_round)) is None:
            return None
        return key

    return until(look, within_s=300, what=f"round {server_round} of stage {stage}")


def test_a_run_that_loses_a_client_and_its_coordinator_ends_in_the_digest_of_a_laptop(
    bed: Bed, rights: None, credentials: None, uri: str, mlflow: str, tmp_path: Path
) -> None:
    here = run_tiny(tmp_path / "here", *EXPERIMENT)
    spec = spec_of(bed, uri, pools=silos(), tracking=mlflow)
    store = open_store(uri)
    with coordinating(bed, spec, "killed") as job:
        key = round_is(bed, store, "killed", 1, 2)
        work = f"lwfed/stage-key={key[:8]},lwfed/step=train-client"
        bed.run("delete", "pod", bed.running_pod(f"{work},lwfed/round=2"), "--grace-period=0", "--force")
        round_is(bed, store, "killed", 1, 3)
        bed.running_pod(f"{work},lwfed/round=3")
        before = {found["metadata"]["uid"] for found in bed.jobs(f"{work},lwfed/round=3")}
        first = bed.get("pods", "-l", f"batch.kubernetes.io/job-name={job}")[0]["metadata"]["name"]
        bed.run("delete", "pod", first, "--grace-period=1")
        assert wait_for_end(bed, job, within_s=600) == "Complete", log_of(bed, job)[-3000:]
        log = log_of(bed, job)
        assert {found["metadata"]["uid"] for found in bed.jobs(f"{work},lwfed/round=3")} == before, "taken over"
        owner = json.loads(bed.run("get", "job", job, "-o", "json"))["metadata"]
        for made in bed.jobs():
            (reference,) = made["metadata"]["ownerReferences"]
            assert reference["uid"] == owner["uid"]
        train = bed.jobs("lwfed/step=train-client")
        asked = [made["spec"]["template"]["spec"]["containers"][0]["resources"]["limits"] for made in train]
        assert all(limits == {GPU: "1"} for limits in asked)
    summary = json.loads(log.strip().splitlines()[-1])
    assert summary["digest"] == here.digest and summary["status"] == "finished"
    records = runs.history(store, runs.read_run(store, "killed"))[1]
    assert [len(record.clients) for record in records] == [NUM_CLIENTS] * 4
    assert all(not record.failed for record in records)
    print("overhead s a round:", [round(r.wall_s["overhead"], 1) for r in records if "overhead" in r.wall_s])
    _look_at_mlflow(mlflow, summary)


def _look_at_mlflow(address: str, summary: dict[str, Any]) -> None:
    """The run with a child a stage, its metrics by global round once each, its end, its digest and its files."""
    quiet()
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=address)
    experiment = client.get_experiment_by_name("cluster")
    assert experiment is not None
    found = client.search_runs([experiment.experiment_id])
    parents = [run for run in found if "mlflow.parentRunId" not in run.data.tags]
    children = [run for run in found if run.data.tags.get("mlflow.parentRunId") == parents[0].info.run_id]
    assert len(parents) == 1 and len(children) == 2 and len(found) == 3
    assert {run.info.status for run in found} == {"FINISHED"}
    losses = client.get_metric_history(parents[0].info.run_id, "train/loss")
    assert sorted(point.step for point in losses) == [1, 2, 3, 4], "each round once, though the coordinator died"
    assert summary["digest"] in parents[0].data.tags.values()
    names = {item.path for item in client.list_artifacts(parents[0].info.run_id)}
    assert "report.html" in names, names


def test_one_client_that_always_fails_is_left_out_where_the_quorum_allows_it(
    bed: Bed, rights: None, credentials: None, uri: str
) -> None:
    pools = silos()
    pools[3] |= {"memory": "64Mi"}
    quorum = f"federation.min_fit_clients={NUM_CLIENTS - 1}"
    spec = spec_of(
        bed, uri, quorum, "stages.rounds=[1,1]", "kubernetes.retries=0", pools=pools, tracking=None
    )  # fmt: skip
    store = open_store(uri)
    with coordinating(bed, spec, "quorum") as job:
        assert wait_for_end(bed, job, within_s=400) == "Complete", log_of(bed, job)[-3000:]
        log = log_of(bed, job)
    records = runs.history(store, runs.read_run(store, "quorum"))[1]
    assert [sorted(record.clients) for record in records] == [["client-000", "client-001", "client-002"]] * 2
    assert all("out of memory" in record.failed["client-003"] for record in records)
    assert "client-003 failed in round 1: out of memory: killed at its limit of 64Mi" in log


def test_a_round_below_its_quorum_ends_the_run_with_the_reason(
    bed: Bed, rights: None, credentials: None, uri: str
) -> None:
    pools = silos()
    pools[3] |= {"memory": "64Mi"}
    spec = spec_of(
        bed, uri, f"federation.min_fit_clients={NUM_CLIENTS}", "kubernetes.retries=0", pools=pools, tracking=None
    )  # fmt: skip
    with coordinating(bed, spec, "short") as job:
        ended = f"batch.kubernetes.io/job-name={job}"

        def code() -> tuple[int, str] | None:
            for pod in bed.pods(ended):
                for status in pod["status"].get("containerStatuses") or ():
                    if "terminated" in status["state"]:
                        name = pod["metadata"]["name"]
                        return int(status["state"]["terminated"]["exitCode"]), bed.run("logs", name)
            return None

        found, log = until(code, within_s=300, what="the coordinator's end")
    assert found == 13
    assert "has 3 of 4 updates and needs 4 (client-003: out of memory" in log.strip().splitlines()[-1]


def test_the_coordinator_may_do_what_it_does_and_no_more(bed: Bed, rights: None) -> None:
    def may(verb: str, resource: str, account: str = "lwfed-coordinator") -> bool:
        who = f"system:serviceaccount:{bed.namespace}:{account}"
        return bed.run("auth", "can-i", verb, resource, "--as", who, check=False).strip() == "yes"

    assert all(may(verb, "jobs.batch") for verb in ("create", "get", "list", "delete"))
    assert all(may(verb, "pods") for verb in ("get", "list"))
    assert may("get", "pods/log") and may("list", "events")
    assert not any(may(verb, "pods") for verb in ("create", "delete"))
    assert not may("get", "secrets") and not may("create", "pods/exec") and not may("update", "jobs.batch")
    assert not any(may(verb, "pods", account="lwfed-worker") for verb in ("get", "list", "create"))
