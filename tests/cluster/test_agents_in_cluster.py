"""Agents in a real cluster: pods that stay for a stage, and a silo whose agent dials out, end in a laptop's digest."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from lwfed.launch.kubernetes.api import connect
from lwfed.launch.kubernetes.jobs import delete_run_jobs
from lwfed.launch.kubernetes.launcher import KubernetesLauncher
from lwfed.launch.kubernetes.names import run_selector
from lwfed.run.events import Event, RoundDone
from lwfed.run.heartbeat import beating
from lwfed.run.runs import Options
from lwfed.run.tasks import RunTask
from lwfed.spec.run import RunSpec
from lwfed.steps.experiment import run_stages
from lwfed.steps.prepare import draft, prepare
from lwfed.store.opening import open_store
from tests.cluster.bed import BASE_IMAGE, GPU, Bed, environment, folders, namespace, pool
from tests.events import plain
from tests.holes import LACKS, on, write_holes
from tests.s3 import PASSWORD, USER, Server
from tests.tiny import run_tiny

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

STAY = {"resident": "stage"}


class Trained:
    """A run of the tiny experiment on the cluster, from this process.

    Attributes:
        digest: Its digest.
        told: What was told.
        jobs: Names of all Jobs that were seen at the end of a round.
        pods: For each round, the names of all pods of clients that were running then.
    """

    def __init__(self, bed: Bed, spec: RunSpec, *, after_round: Any = None) -> None:
        self.bed, self.told = bed, list[tuple[str, dict[str, Any]]]()
        self.jobs: set[str] = set()
        self.starts: list[float] = []
        store = open_store(spec.store.uri)
        run = prepare(draft(spec, store=store, options=Options()), store=store, emit=lambda _: None)
        self.run_id, settings = run.run_id, spec.kubernetes

        def emit(event: Event) -> None:
            self.told.append(plain(event))
            if isinstance(event, RoundDone):
                self.starts.append(time.monotonic())
                self.jobs |= {job["metadata"]["name"] for job in bed.jobs(run_selector(run.run_id))}
                if after_round is not None:
                    after_round(len(self.starts))

        launcher = KubernetesLauncher(spec, store=store, run_id=run.run_id)
        try:
            with beating(store, run.run_id, every_s=settings.heartbeat_s, by="a test"):
                summary = run_stages(run, launcher=launcher, store=store, emit=emit, cache=None)
                launcher.server("finish", RunTask(store=store.uri, run_id=run.run_id), emit=emit)
        finally:
            launcher.close()
            with closing(connect(bed.namespace)) as cluster:
                self.left = delete_run_jobs(cluster, run.run_id)
        self.digest = summary.digest

    def gaps(self) -> list[float]:
        """Seconds from a round's last update to the next round's first step, without aggregation and evaluation."""
        return [values["seconds"] for kind, values in self.told if kind == "overhead"]

    def pods_of(self, client: str) -> list[str]:
        return [v["pod"] for k, v in self.told if k == "client_started" and v["client"] == client]


def test_pods_that_stay_end_in_the_digest_of_a_laptop(bed: Bed, uri: str, tmp_path: Path) -> None:
    size = ("federation.num_clients=5", "stages.rounds=[3,2]")
    here = run_tiny(tmp_path / "here", *size)
    settings = {"pools": [pool("clients", gpus=1, **STAY)], "server": pool("server", **STAY)}
    found = Trained(bed, bed.spec(uri, *size, kubernetes=settings))
    assert found.digest == here.summary["digest"]
    names = {name for name in found.jobs if "-agent-" in name}
    assert len(names) == 4, f"a Job per pool and stage: {found.jobs}"
    taken = {found.pods_of(f"client-{n:03d}")[0] for n in range(5)}
    assert len(taken) <= 4, f"five clients on the {4} {GPU} of the node: {taken}"
    assert not [name for name in found.left if "-agent-" in name], "they go with their stage"
    print("\nseconds between rounds:", [round(gap, 2) for gap in found.gaps()])


def test_two_of_ten_clients_a_round_and_pods_that_end_when_idle(bed: Bed, uri: str, tmp_path: Path) -> None:
    size = ("federation.num_clients=10", "federation.fraction_fit=0.2", "stages.rounds=[4,1]", "data.shapes.train=60")
    here = run_tiny(tmp_path / "here", *size)
    settings = {"pools": [pool("clients", idle_s=4, **STAY)]}
    found = Trained(bed, bed.spec(uri, *size, kubernetes=settings), after_round=lambda _: time.sleep(12))
    assert found.digest == here.summary["digest"]
    assert any(name.endswith("-a2") for name in found.jobs), f"a place that ended has another Job: {found.jobs}"


def test_a_pod_that_is_killed_comes_back_and_goes_on_with_the_round(bed: Bed, uri: str, tmp_path: Path) -> None:
    size = ("stages.rounds=[2,1]", "training.local_epochs=60")
    here = run_tiny(tmp_path / "here", *size)
    settings = {"pools": [pool("clients", **STAY)]}
    killed: list[str] = []

    def kill() -> None:
        pod = bed.running_pod("lwfed/step=agent,lwfed/pool=clients")
        time.sleep(4)
        bed.kill_process(pod)
        killed.append(pod)

    thread = threading.Thread(target=kill)
    thread.start()
    found = Trained(bed, bed.spec(uri, *size, kubernetes=settings))
    thread.join()
    assert killed and found.digest == here.summary["digest"]
    assert [v["line"] for k, v in found.told if k == "waiting" and "the Job restarts it" in v["line"]]


def test_a_weak_client_in_pods(bed: Bed, uri: str, tmp_path: Path) -> None:
    weak = "federation.groups=[{name: weak, clients: [client-001], max_blocks: 0}]"
    size = ("federation.num_clients=3", "stages.rounds=[2,2]", "strategy=progressive", weak)
    here = run_tiny(tmp_path / "here", *size)
    found = Trained(bed, bed.spec(uri, *size))
    assert found.digest == here.summary["digest"]


@pytest.mark.parametrize("way", [{}, STAY], ids=["a Job per round", "pods that stay"])
def test_missing_modalities_blended_heads_and_a_gate_in_pods(
    bed: Bed, uri: str, tmp_path: Path, way: dict[str, str]
) -> None:
    """Clients read a table on their node; the one in the north hears nothing."""
    data = tmp_path / "data"
    write_holes(data, count=60, lacks=["audio"] * 30 + [LACKS[n % len(LACKS)] for n in range(30)])
    heads = "model.objective={kind: supervised, hidden: 12, dropout: 0, blending: {}}"
    held_out = "evaluation={holdout_fraction: 0.3, federated_every: 1}"
    size = on(data, heads, held_out, "stages={rounds: [5, 1], gate: {kind: movement, window: 2, threshold: 0.99}}")
    here = run_tiny(tmp_path / "here", *size)
    volumes = [*folders(), {"name": "data", "mount_path": str(data), "host_path": str(data)}]
    settings = {"pools": [pool("clients", **way, volumes=volumes)], "server": pool("server", **way, volumes=volumes)}
    found = Trained(bed, bed.spec(uri, *size, kubernetes=settings))
    assert found.digest == here.summary["digest"]
    assert len(found.starts) < 6, "the gate ends the first stage"


@contextmanager
def silo(bed: Bed, uri: str, client: str, folder: Path) -> Iterator[Path]:
    """Runs an agent on this machine, outside of the cluster; yields its log."""
    log = folder / f"{client}.log"
    with log.open("wb") as file:
        command = [sys.executable, "-m", "lwfed", "agent", "--store", uri, "--client", client]
        process = subprocess.Popen(command, stderr=file, env={**os.environ, **bed.env, "OMP_NUM_THREADS": "1"})
    try:
        yield log
    finally:
        process.terminate()
        process.wait(timeout=60)


PROBE = """
import socket, sys
for host, port in zip(sys.argv[1::2], map(int, sys.argv[2::2])):
    try:
        socket.create_connection((host, port), timeout=5).close()
        print(port, "open")
    except OSError:
        print(port, "closed")
"""


def only_the_store(server: Server) -> dict[str, Any]:
    """Returns a network policy that lets pods of a namespace reach the store, and nothing else."""
    address, _, port = server.endpoint.partition("://")[2].partition(":")
    egress = {"to": [{"ipBlock": {"cidr": f"{address}/32"}}], "ports": [{"protocol": "TCP", "port": int(port)}]}
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": "only-the-store"},
        "spec": {"podSelector": {}, "policyTypes": ["Ingress", "Egress"], "egress": [egress]},
    }


def agent_pod(uri: str, client: str, server: Server, keys: Path) -> dict[str, Any]:
    """Returns a pod that is a silo's agent, with its own credentials."""
    access, secret = ((keys / name).read_text().strip() for name in ("accesskey", "secretkey"))
    env = {
        **environment(),
        "AWS_ENDPOINT_URL_S3": server.endpoint,
        "AWS_ACCESS_KEY_ID": access,
        "AWS_SECRET_ACCESS_KEY": secret,
    }
    volumes = [{"name": v["name"], "persistentVolumeClaim": {"claimName": v["claim"]}} for v in folders()]
    container = {
        "name": "agent",
        "image": BASE_IMAGE,
        "imagePullPolicy": "Never",
        "command": ["python", "-m", "lwfed", "agent", "--store", uri, "--client", client],
        "env": [{"name": name, "value": value} for name, value in env.items()],
        "volumeMounts": [{"name": v["name"], "mountPath": v["mount_path"]} for v in folders()],
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "agent", "labels": {"silo": client}},
        "spec": {"containers": [container], "volumes": volumes, "automountServiceAccountToken": False},
    }


def test_a_silo_in_a_namespace_of_its_own_reaches_the_store_alone(
    bed: Bed, minio: Server, uri: str, tmp_path: Path
) -> None:
    if minio.kind != "minio":
        pytest.skip("needs MinIO: `.ci/minio` builds it")
    size = ("federation.num_clients=3", "stages.rounds=[2,1]")
    here = run_tiny(tmp_path / "here", *size)
    init = ["store", "init", uri, "--client", "client-002", "--silos", str(tmp_path / "silos"), "--rotate"]
    admin = ["--endpoint", minio.endpoint, "--admin-user", USER, "--admin-password", PASSWORD]
    subprocess.run([sys.executable, "-m", "lwfed", *init, *admin], check=True, capture_output=True, timeout=300)
    keys = tmp_path / "silos/client-002/secret"
    pools = [{"name": "hospital", "clients": ["client-002"], "remote": True}, pool("clients", **STAY)]
    with namespace(f"lwfed-silo-{uuid.uuid4().hex[:8]}") as silo_bed:
        assert silo_bed is not None
        silo_bed.apply(only_the_store(minio), agent_pod(uri, "client-002", minio, keys))
        found = Trained(bed, bed.spec(uri, *size, kubernetes={"pools": pools}))
        lines = silo_bed.run("logs", "agent")
        api = urlsplit(os.environ.get("LWFED_TEST_CLUSTER") or "https://127.0.0.1:6443")
        store_host, _, store_port = minio.endpoint.partition("://")[2].partition(":")
        places = [store_host, store_port, str(api.hostname), str(api.port)]
        probe = silo_bed.run("exec", "agent", "--", "python", "-c", PROBE, *places)
    assert found.digest == here.summary["digest"], lines
    assert lines.count("done in") == 3, lines
    assert f"{store_port} open" in probe
    print("\nfrom the silo:", probe.split("\n"))


def test_a_silo_that_dials_out_beside_pods(bed: Bed, uri: str, tmp_path: Path) -> None:
    size = ("federation.num_clients=3", "stages.rounds=[2,1]")
    here = run_tiny(tmp_path / "here", *size)
    pools = [{"name": "hospital", "clients": ["client-002"], "remote": True}, pool("clients", **STAY)]
    with silo(bed, uri, "client-002", tmp_path) as log:
        found = Trained(bed, bed.spec(uri, *size, kubernetes={"pools": pools}))
        lines = log.read_text(encoding="utf-8")
    assert found.digest == here.summary["digest"], lines
    assert lines.count("done in") == 3, lines
