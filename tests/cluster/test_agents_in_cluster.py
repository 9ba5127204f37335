"""Agents in a real cluster: pods that stay for a stage, and a silo whose agent dials out, end in a laptop's digest."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

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
from tests.cluster.bed import GPU, Bed, pool
from tests.events import plain
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


def test_groups_and_a_missing_modality_in_pods(bed: Bed, uri: str, tmp_path: Path) -> None:
    weak = "federation.groups=[{name: weak, clients: [client-001], max_blocks: 0}]"
    size = ("federation.num_clients=3", "stages.rounds=[2,2]", "strategy=progressive", weak)
    here = run_tiny(tmp_path / "here", *size)
    found = Trained(bed, bed.spec(uri, *size))
    assert found.digest == here.summary["digest"]


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


def test_a_silo_that_dials_out_beside_pods(bed: Bed, uri: str, tmp_path: Path) -> None:
    size = ("federation.num_clients=3", "stages.rounds=[2,1]")
    here = run_tiny(tmp_path / "here", *size)
    pools = [{"name": "hospital", "clients": ["client-002"], "remote": True}, pool("clients", **STAY)]
    with silo(bed, uri, "client-002", tmp_path) as log:
        found = Trained(bed, bed.spec(uri, *size, kubernetes={"pools": pools}))
        lines = log.read_text(encoding="utf-8")
    assert found.digest == here.summary["digest"], lines
    assert lines.count("done in") == 3, lines
