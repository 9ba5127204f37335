"""The API is asked with patience, and its refusals are errors that say what to do."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from lwfed.launch.kubernetes import api as kubernetes_api
from lwfed.launch.kubernetes.api import (
    ROLE,
    Cluster,
    DeniedError,
    connect,
    current_namespace,
    lines_of,
)
from lwfed.types.errors import SpecError, UnreachableError
from tests.unit.launch.api_server import NAMESPACE, ApiServer
from tests.unit.launch.recordings import answer


def manifest(name: str = "a", **labels: str) -> dict[str, Any]:
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": name, "labels": labels}, "spec": {}}


@contextmanager
def away(server: ApiServer, seconds: float) -> Iterator[None]:
    """Has the server be gone, and back after a while."""
    server.stop()
    timer = threading.Timer(seconds, server.start)
    timer.start()
    try:
        yield
    finally:
        timer.join()


def test_a_job_is_made_once_read_and_removed(cluster: Cluster) -> None:
    made = cluster.create_job(manifest())
    assert made is not None and made["metadata"]["uid"]
    assert cluster.create_job(manifest()) is None, "the name is taken"
    assert cluster.read_job("a") == made and cluster.read_job("b") is None
    cluster.delete_job("a", uid="another")
    assert cluster.read_job("a") == made, "one of that name that was made later is not ours"
    cluster.delete_job("a", uid=made["metadata"]["uid"])
    assert cluster.read_job("a") is None
    cluster.delete_job("a")


def test_a_job_is_removed_with_its_pods(server: ApiServer, cluster: Cluster) -> None:
    """Without the word for it, Jobs of batch/v1 leave their pods behind."""
    cluster.create_job(manifest())
    cluster.delete_job("a")
    (request,) = server.asked("delete", "jobs")
    assert request.body == {"propagationPolicy": "Background"}


def test_a_list_has_what_labels_select(cluster: Cluster) -> None:
    for name, run in (("a", "r"), ("b", "r"), ("c", "s")):
        cluster.create_job(manifest(name, run=run))
    assert [item["metadata"]["name"] for item in cluster.find("jobs", labelSelector="run=r")] == ["a", "b"]
    assert cluster.find("jobs", labelSelector="run=t") == []


def test_events_of_an_object_come_oldest_first(server: ApiServer, cluster: Cluster) -> None:
    one, other = (server.add("jobs", manifest(name)) for name in ("a", "b"))
    server.warn(one, "First", "1")
    server.warn(other, "Other", "2")
    server.warn(one, "Second", "3")
    server.objects["events"] = dict(reversed(server.objects["events"].items()))
    assert [event["reason"] for event in cluster.events_of(one["metadata"]["uid"])] == ["First", "Second"]


def test_a_server_that_is_away_and_back_is_waited_for(server: ApiServer, cluster: Cluster) -> None:
    cluster.create_job(manifest())
    with away(server, 0.8):
        assert cluster.read_job("a") is not None


@pytest.mark.parametrize("status", [429, 500, 503])
def test_an_answer_that_passes_is_asked_for_again(server: ApiServer, cluster: Cluster, status: int) -> None:
    server.refuse("create", "jobs", status, {"message": "etcdserver: leader changed"})
    assert cluster.create_job(manifest()) is not None
    assert len(server.asked("create", "jobs")) == 2


def test_an_answer_that_is_lost_is_asked_for_again(server: ApiServer, cluster: Cluster) -> None:
    server.lose_answer("create", "jobs")
    assert cluster.create_job(manifest()) is None, "it was made the first time"
    assert len(server.asked("create", "jobs")) == 2 and server.jobs() == ["a"]


def test_what_is_no_json_is_no_answer(server: ApiServer, cluster: Cluster) -> None:
    server.refuse("get", "jobs", 200, "<html>a proxy's page</html>")
    assert cluster.read_job("b") is None
    server.refuse("list", "jobs", 200, "<html>a proxy's page</html>")
    with pytest.raises(UnreachableError, match="not JSON"):
        cluster.find("jobs")


def test_patience_ends(server: ApiServer, cluster: Cluster) -> None:
    server.stop()
    started = time.monotonic()
    with pytest.raises(UnreachableError, match=f"the Kubernetes API at {server.url} does not answer") as caught:
        cluster.delete_job("a", patience_s=0.7)
    assert 0.2 <= time.monotonic() - started < 3
    assert "--run-id" in caught.value.remedy


def test_a_list_is_asked_for_once(server: ApiServer, cluster: Cluster) -> None:
    """Polls have patience of their own."""
    server.refuse("list", "jobs", 503, {"message": "starting"})
    with pytest.raises(UnreachableError, match="503"):
        cluster.find("jobs")
    assert len(server.asked("list", "jobs")) == 1


@pytest.mark.parametrize(
    ("what", "kind", "words", "remedy"),
    [
        (
            "a Job that is not valid",
            SpecError,
            "spec.parallelism: Invalid value: -1",
            "correct `kubernetes` in the spec",
        ),
        (
            "a Job to make without the right to",
            DeniedError,
            "not allowed to create jobs in namespace lwfed: jobs",
            ROLE,
        ),
        ("a Job beyond a quota", DeniedError, "exceeded quota: jobs", "which quota or policy"),
        ("no valid token", DeniedError, "rejects our credentials: Unauthorized", "KUBECONFIG"),
    ],
)
def test_a_refusal_is_told_at_once_with_the_servers_words(
    server: ApiServer, cluster: Cluster, what: str, kind: type[Exception], words: str, remedy: str
) -> None:
    server.refuse("create", "jobs", *answer(what))
    with pytest.raises(kind) as caught:
        cluster.create_job(manifest())
    assert type(caught.value) is kind and words in str(caught.value) and remedy in str(caught.value)
    assert len(server.asked("create", "jobs")) == 1, "another try would not help"


def test_a_namespace_that_is_not_there_is_named(server: ApiServer) -> None:
    other = connect("absent")
    with pytest.raises(SpecError, match=r'namespaces "absent" not found.*kubernetes\.namespace'):
        other.create_job(manifest())
    other.close()


def test_a_refusal_without_json_is_told_too(server: ApiServer, cluster: Cluster) -> None:
    server.refuse("create", "jobs", 403, "a proxy\n forbids it")
    with pytest.raises(DeniedError, match="a proxy forbids it"):
        cluster.create_job(manifest())


def test_a_wrong_token_is_noticed_when_we_connect(
    server: ApiServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(server.kubeconfig(tmp_path / "other", token="guessed")))
    with pytest.raises(DeniedError, match="rejects our credentials"):
        connect(NAMESPACE)


@pytest.mark.parametrize("content", [None, "", "not: a kubeconfig"])
def test_without_a_cluster_the_remedy_is_named(
    server: ApiServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str | None
) -> None:
    path = tmp_path / "other"
    if content is not None:
        path.write_text(content, encoding="utf-8")
    monkeypatch.setenv("KUBECONFIG", str(path))
    with pytest.raises(UnreachableError, match=r"no Kubernetes cluster is configured.*set KUBECONFIG"):
        connect(NAMESPACE)


def test_the_namespace_is_the_pods_own_else_that_of_the_context(
    server: ApiServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert current_namespace() == NAMESPACE
    own = tmp_path / "namespace"
    own.write_text("team\n", encoding="utf-8")
    monkeypatch.setattr(kubernetes_api, "OWN_NAMESPACE", own)
    assert current_namespace() == "team"
    monkeypatch.setattr(kubernetes_api, "OWN_NAMESPACE", tmp_path / "absent")
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "absent"))
    assert current_namespace() == "default"


def test_a_log_yields_lines_until_the_connection_breaks(server: ApiServer, cluster: Cluster) -> None:
    job = server.add("jobs", {**manifest(), "spec": {"template": {"metadata": {"labels": {}}}}})
    pod = server.add_pod(job, 0)
    server.run_pod(pod)
    server.say(pod, "first")
    lines = lines_of(cluster.log(pod, container="lwfed", follow="true"))
    assert next(lines).endswith("first")
    server.cut()
    with pytest.raises(UnreachableError, match="the connection broke"):
        next(lines)


def test_a_log_is_asked_for_once_and_a_refusal_is_named(server: ApiServer, cluster: Cluster) -> None:
    server.refuse("get", "pods/log", *answer("a Job to make without the right to"))
    with pytest.raises(DeniedError, match="not allowed to get pods/log"):
        cluster.log("pod", container="lwfed")
    server.refuse("get", "pods/log", 503, {})
    with pytest.raises(UnreachableError, match="503"):
        cluster.log("pod", container="lwfed")
    assert len(server.asked("get", "pods/log")) == 2


def test_lines_are_whole_however_they_come(server: ApiServer, cluster: Cluster) -> None:
    job = server.add("jobs", {**manifest(), "spec": {"template": {"metadata": {"labels": {}}}}})
    pod = server.add_pod(job, 0)
    server.run_pod(pod)
    server.say(pod, "ä" * 100_000, "", "last")
    server.end_pod(pod)
    found = list(lines_of(cluster.log(pod, container="lwfed", follow="true", timestamps="true")))
    assert [line.partition(" ")[2] for line in found] == ["ä" * 100_000, "", "last"]
    assert "".join(lines_of(cluster.log(pod, container="lwfed", tailLines=1))) == "last"
