"""Work that is begun is taken over and never begun twice; other work never touches it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from lwfed.launch.kubernetes import api as kubernetes_api
from lwfed.launch.kubernetes import jobs as kubernetes_jobs
from lwfed.launch.kubernetes.api import Cluster
from lwfed.launch.kubernetes.jobs import Jobs, delete_run_jobs, job_context
from lwfed.launch.kubernetes.manifests import Call, JobContext
from lwfed.launch.kubernetes.names import RUN_LABEL, call_labels
from lwfed.launch.kubernetes.state import JobHandle
from lwfed.run.tasks import ClientTask
from lwfed.spec.kubernetes import KubernetesSpec
from lwfed.spec.load import build_spec
from lwfed.store import paths
from lwfed.store.local import LocalStore
from lwfed.types.errors import LwfedError, SpecError
from tests.unit.launch.api_server import NAMESPACE, ApiServer
from tests.unit.launch.recordings import answer

KEY = "1a2b3c4d" * 8
CLIENTS = ("client-000", "client-001")
FIRST, SECOND = (f"lwfed-1a2b3c4d-r001-train-clients-a{n}" for n in (1, 2))


class Coordinator:
    """One that begins Jobs."""

    def __init__(self, cluster: Cluster, root: Path, *, run_id: str = "r", **values: Any) -> None:
        self.settings: KubernetesSpec = build_spec(
            {"kubernetes": {"namespace": NAMESPACE, "image": "lwfed:1", **values}}
        ).kubernetes
        self.store, self.run_id = LocalStore(root), run_id
        self.jobs = Jobs(
            self.settings, cluster=cluster, store=self.store, run_id=run_id, context=JobContext(env={"A": "1"})
        )

    def tasks(self, clients: Sequence[str] = CLIENTS, *, server_round: int = 1) -> list[ClientTask]:
        return [
            ClientTask(
                store=self.store.uri, run_id=self.run_id, stage_key=KEY, server_round=server_round, client=client
            )
            for client in clients
        ]

    def call(self, tasks: Sequence[ClientTask], *, deadline_s: float = 60) -> Call:
        labels = call_labels("train-client", tasks[0], run_id=self.run_id)
        return Call(step="train-client", labels=labels, deadline_s=deadline_s)

    def begin(self, clients: Sequence[str] = CLIENTS, *, server_round: int = 1, deadline_s: float = 60) -> JobHandle:
        tasks = self.tasks(clients, server_round=server_round)
        return self.jobs.begin(self.call(tasks, deadline_s=deadline_s), self.settings.pools[0], tasks)

    def listed(self, name: str) -> list[str] | None:
        """Gives the clients of a Job's list."""
        found = self.store.read_ref(paths.job(name))
        return None if found is None else [task["client"] for task in found["tasks"]]


def end(server: ApiServer, name: str, kind: str = "Failed") -> None:
    server.mend_job(name, conditions=[{"type": kind, "status": "True", "reason": "x"}])


def test_a_job_is_made_with_its_list_of_tasks(server: ApiServer, cluster: Cluster, tmp_path: Path) -> None:
    coordinator = Coordinator(cluster, tmp_path)
    begun = coordinator.begin()
    assert begun.name == FIRST and begun.clients == CLIENTS and not begun.adopted
    assert server.jobs() == [FIRST] and coordinator.listed(FIRST) == list(CLIENTS)
    job = server.job()
    assert job["metadata"]["uid"] == begun.uid and job["spec"]["completions"] == 2
    assert job["metadata"]["labels"][RUN_LABEL] == "r"
    assert {"name": "A", "value": "1"} in job["spec"]["template"]["spec"]["containers"][0]["env"]


def test_the_list_is_there_before_the_job(server: ApiServer, cluster: Cluster, tmp_path: Path) -> None:
    server.refuse("create", "jobs", *answer("a Job that is not valid"))
    coordinator = Coordinator(cluster, tmp_path)
    with pytest.raises(SpecError, match=r"spec\.parallelism"):
        coordinator.begin()
    assert coordinator.listed(FIRST) == list(CLIENTS) and not server.jobs()


def test_another_coordinator_takes_the_job_over_for_all_or_some_of_its_tasks(
    server: ApiServer, cluster: Cluster, tmp_path: Path
) -> None:
    first = Coordinator(cluster, tmp_path).begin()
    for clients in (CLIENTS, CLIENTS[1:]):
        again = Coordinator(cluster, tmp_path).begin(clients, deadline_s=7)
        assert again == JobHandle(name=FIRST, uid=first.uid, clients=CLIENTS, adopted=True), "with all its indexes"
    assert len(server.asked("create", "jobs")) == 1 and server.jobs() == [FIRST]


@pytest.mark.parametrize(
    ("clients", "values"),
    [
        ((*CLIENTS, "client-002"), {}),
        (CLIENTS, {"image": "lwfed:2"}),
        (CLIENTS, {"retries": 5}),
        (CLIENTS, {"heartbeat_timeout_s": 500}),
    ],
    ids=["a client more", "another image", "other retries", "another heartbeat"],
)
def test_a_job_that_does_other_work_or_does_it_otherwise_gives_way(
    server: ApiServer, cluster: Cluster, tmp_path: Path, clients: Sequence[str], values: dict[str, Any]
) -> None:
    Coordinator(cluster, tmp_path).begin()
    begun = Coordinator(cluster, tmp_path, **values).begin(clients)
    assert begun.name == SECOND and not begun.adopted and begun.clients == tuple(clients)
    assert server.jobs() == [SECOND], "two pods of one client would do the work twice"


def test_a_job_whose_list_is_gone_or_another_gives_way(server: ApiServer, cluster: Cluster, tmp_path: Path) -> None:
    first = Coordinator(cluster, tmp_path)
    first.jobs.forget(first.begin())
    assert first.listed(FIRST) is None
    assert first.begin().name == SECOND and server.jobs() == [SECOND]
    changed = first.store.read_ref(paths.job(SECOND))
    assert changed is not None
    first.store.write_ref(paths.job(SECOND), {**changed, "tasks": [*changed["tasks"], *changed["tasks"]]})
    assert not first.begin().adopted


@pytest.mark.parametrize("kind", ["Failed", "FailureTarget", "Complete"])
def test_a_job_that_is_over_is_left_and_followed_by_another(
    server: ApiServer, cluster: Cluster, tmp_path: Path, kind: str
) -> None:
    coordinator = Coordinator(cluster, tmp_path)
    coordinator.begin()
    end(server, FIRST, kind)
    begun = coordinator.begin()
    assert begun.name == SECOND and not begun.adopted
    assert server.jobs() == [FIRST, SECOND], "it stays to be looked at"


def test_names_are_counted_beyond_nine(server: ApiServer, cluster: Cluster, tmp_path: Path) -> None:
    coordinator = Coordinator(cluster, tmp_path)
    for n in range(1, 12):
        begun = coordinator.begin()
        assert begun.name.endswith(f"-a{n}")
        end(server, begun.name)


def test_other_rounds_and_pools_are_other_work(server: ApiServer, cluster: Cluster, tmp_path: Path) -> None:
    coordinator = Coordinator(cluster, tmp_path)
    one, other = coordinator.begin(), coordinator.begin(server_round=2)
    assert one.name != other.name and server.jobs() == [one.name, other.name]
    silo = Coordinator(cluster, tmp_path, pools=[{"name": "silo"}])
    assert silo.begin().name == FIRST.replace("clients", "silo") and len(server.jobs()) == 3


def test_an_answer_that_is_lost_makes_no_second_job(server: ApiServer, cluster: Cluster, tmp_path: Path) -> None:
    server.lose_answer("create", "jobs")
    begun = Coordinator(cluster, tmp_path).begin()
    assert begun.name == FIRST and not begun.adopted, "nobody else made it"
    assert server.jobs() == [FIRST] and begun.uid == server.job()["metadata"]["uid"]


def test_a_run_with_an_equal_stage_neither_takes_nor_changes_what_another_run_has(
    server: ApiServer, cluster: Cluster, tmp_path: Path
) -> None:
    """Names are of the stage, which two runs may share; a pod finds its task by its index in the list."""
    one, other = Coordinator(cluster, tmp_path), Coordinator(cluster, tmp_path, run_id="another")
    first = one.begin()
    second = other.begin(CLIENTS[1:])
    assert (first.name, second.name) == (FIRST, SECOND) and not second.adopted
    assert one.listed(FIRST) == list(CLIENTS) and other.listed(SECOND) == list(CLIENTS[1:])
    assert server.jobs() == [FIRST, SECOND]
    assert one.begin() == JobHandle(name=FIRST, uid=first.uid, clients=CLIENTS, adopted=True)


def test_a_list_that_a_job_has_left_behind_does_not_take_its_name(
    server: ApiServer, cluster: Cluster, tmp_path: Path
) -> None:
    coordinator = Coordinator(cluster, tmp_path)
    coordinator.begin()
    server.remove("jobs", FIRST)
    assert coordinator.begin(CLIENTS[1:]).name == FIRST and coordinator.listed(FIRST) == list(CLIENTS[1:])


def test_where_no_name_is_free_the_last_is_named(
    server: ApiServer, cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kubernetes_jobs, "NAME_TRIES", 3)
    other = Coordinator(cluster, tmp_path, run_id="another")
    for _ in range(3):
        end(server, other.begin().name)
    with pytest.raises(LwfedError, match=r"no free name.*train-clients-a3 .*kubectl get jobs -n lwfed -l"):
        Coordinator(cluster, tmp_path).begin()


def test_an_ended_job_is_removed_and_its_successor_of_the_same_name_is_not(
    server: ApiServer, cluster: Cluster, tmp_path: Path
) -> None:
    coordinator = Coordinator(cluster, tmp_path)
    first = coordinator.begin()
    server.remove("jobs", FIRST)
    second = coordinator.begin()
    assert second.name == first.name and second.uid != first.uid
    coordinator.jobs.end(first)
    assert server.jobs() == [FIRST]
    coordinator.jobs.end(second)
    assert not server.jobs()


def test_a_job_is_ended_without_much_patience(
    server: ApiServer, cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kubernetes_jobs, "CLEAN_UP_S", 0.6)
    coordinator = Coordinator(cluster, tmp_path)
    begun = coordinator.begin()
    server.stop()
    started = time.monotonic()
    coordinator.jobs.end(begun)
    assert time.monotonic() - started < 3


def test_all_jobs_of_a_run_are_removed_and_no_others(server: ApiServer, cluster: Cluster, tmp_path: Path) -> None:
    one, other = Coordinator(cluster, tmp_path), Coordinator(cluster, tmp_path, run_id="another")
    first = one.begin()
    end(server, first.name)
    names = [first.name, one.begin(server_round=2).name]
    left = other.begin().name
    assert delete_run_jobs(cluster, "r") == sorted(names)
    assert server.jobs() == [left] and delete_run_jobs(cluster, "r") == []


def test_outside_a_cluster_nobody_owns_jobs_and_the_run_is_passed_on(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert job_context(cluster, run_id="r") == JobContext(env={"LWFED_RUN_ID": "r"})
    monkeypatch.setenv("MLFLOW_RUN_ID", "platforms")
    context = job_context(cluster, run_id="r")
    assert "MLFLOW_RUN_ID" not in context.env, "that run is the coordinator's to adopt"
    assert context.env == {"LWFED_RUN_ID": "r", "LWFED_MLFLOW_PARENT_RUN_ID": "platforms"}


WORKFLOW = {"apiVersion": "argoproj.io/v1alpha1", "kind": "Workflow", "name": "w", "uid": "1234", "controller": True}
NOT_IT = {"apiVersion": "v1", "kind": "ConfigMap", "name": "c", "uid": "99"}


@pytest.mark.parametrize("variable", ["POD_NAME", "KFP_POD_NAME"])
def test_the_controller_of_the_coordinators_pod_owns_its_jobs(
    server: ApiServer, cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    """A pod that takes its place has another identity."""
    in_pod(tmp_path, monkeypatch, NAMESPACE, variable)
    server.add("pods", {"metadata": {"name": "me", "ownerReferences": [NOT_IT, WORKFLOW]}})
    assert job_context(cluster, run_id="r").owner == {k: v for k, v in WORKFLOW.items() if k != "controller"}


def test_a_bare_pod_owns_its_jobs_itself(
    server: ApiServer, cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_pod(tmp_path, monkeypatch, NAMESPACE)
    assert job_context(cluster, run_id="r").owner is None, "a name that is no pod's, such as one a user has set"
    uid = server.add("pods", {"metadata": {"name": "me"}})["metadata"]["uid"]
    assert job_context(cluster, run_id="r").owner == {"apiVersion": "v1", "kind": "Pod", "name": "me", "uid": uid}


def test_nobody_owns_jobs_of_another_namespace(
    server: ApiServer, cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cluster would take them for orphans and remove them."""
    in_pod(tmp_path, monkeypatch, "another")
    server.add("pods", {"metadata": {"name": "me"}})
    assert job_context(cluster, run_id="r").owner is None and not server.asked("get", "pods")


def in_pod(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, namespace: str, variable: str = "POD_NAME") -> None:
    """Has this process be in the pod `me` of a namespace."""
    own = tmp_path / "namespace"
    own.write_text(namespace, encoding="utf-8")
    monkeypatch.setattr(kubernetes_api, "OWN_NAMESPACE", own)
    monkeypatch.setenv(variable, "me")
