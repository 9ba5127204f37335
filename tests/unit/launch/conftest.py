"""A stand-in for a cluster's API server, to which this process's settings lead, and launchers on trial before it."""

from __future__ import annotations

import queue
from collections.abc import Iterator
from pathlib import Path

import pytest

from lwfed.launch.kubernetes import api as kubernetes_api
from lwfed.launch.kubernetes import collect as kubernetes_collect
from lwfed.launch.kubernetes import jobs as kubernetes_jobs
from lwfed.launch.kubernetes import poll as kubernetes_poll
from lwfed.launch.kubernetes import state as kubernetes_state
from lwfed.launch.kubernetes.api import Cluster, connect
from lwfed.launch.kubernetes.logs import Lines
from tests.unit.launch.api_server import NAMESPACE, ApiServer, serving
from tests.unit.launch.trial import Trial

PODS_OWN = ("POD_NAME", "KFP_POD_NAME", "MLFLOW_RUN_ID", "LWFED_MLFLOW_PARENT_RUN_ID")


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ApiServer]:
    """The server; this process is in no pod, even where the tests run in one, and looks more often than elsewhere."""
    for name in PODS_OWN:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(kubernetes_api, "OWN_NAMESPACE", tmp_path / "in-no-pod")
    monkeypatch.setattr(kubernetes_poll, "EVERY_S", 0.05)
    with serving() as found:
        monkeypatch.setenv("KUBECONFIG", str(found.kubeconfig(tmp_path / "kubeconfig")))
        yield found


@pytest.fixture
def cluster(server: ApiServer) -> Iterator[Cluster]:
    """A connection to it."""
    found = connect(NAMESPACE)
    yield found
    found.close()


@pytest.fixture
def lines() -> Lines:
    """Where lines of logs go."""
    return queue.SimpleQueue()


@pytest.fixture
def trial(server: ApiServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Trial]:
    """A trial in which less time passes between looks than in a cluster."""
    monkeypatch.setattr(kubernetes_collect, "LOOK_S", 0.2)
    monkeypatch.setattr(kubernetes_collect, "DRAIN_S", 0.3)
    monkeypatch.setattr(kubernetes_state, "SETTLE_S", 0.2)
    monkeypatch.setattr(kubernetes_jobs, "CLEAN_UP_S", 0.6)
    made = Trial(tmp_path / "store")
    yield made
    for call in made.calls:
        call._thread.join(timeout=30)
        assert not call._thread.is_alive()
    for launcher in made.launchers:
        launcher.close()
