"""Calls of the launcher from their Jobs' start to the last outcome; the test plays what pods do."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from lwfed.launch.kubernetes import api as kubernetes_api
from lwfed.launch.kubernetes import collect as kubernetes_collect
from lwfed.launch.kubernetes import end_run
from lwfed.launch.kubernetes import poll as kubernetes_poll
from lwfed.run.launcher import Outcome
from lwfed.run.tasks import InspectTask, RoundTask
from lwfed.spec.load import build_spec
from lwfed.store import paths
from lwfed.store.local import LocalStore
from lwfed.types.errors import CheckpointError, DataError, LwfedError, SpecError, UnreachableError
from tests.events import emit_to
from tests.tiny import ignore
from tests.unit.launch.api_server import NAMESPACE, ApiServer, until
from tests.unit.launch.recordings import answer, recording
from tests.unit.launch.trial import CLIENTS, KEY, Trial, Working

NO_NODE = [
    {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/1 nodes are available: 1 x."}
]


def event(kind: str, **values: Any) -> str:
    return json.dumps({"event": kind, "values": values})


def started(server: ApiServer, job: dict[str, Any], indexes: Sequence[int] = (0, 1)) -> list[str]:
    """Has a Job's pods run; gives their names."""
    pods = [server.add_pod(job, index) for index in indexes]
    for pod in pods:
        server.run_pod(pod)
    return pods


def test_a_round_of_clients_from_start_to_end(server: ApiServer, trial: Trial) -> None:
    call = trial.train()
    job = server.job()
    name = job["metadata"]["name"]
    one, other = started(server, job)
    server.say(
        one,
        "reads its data",
        event("client_step", client="client-000", step=1, steps=2, loss=0.5),
        event("report", x=1),
    )
    until(lambda: [kind for kind, _ in trial.told if kind == "client_step"], what="a step")
    server.end_pod(one)
    until(lambda: len(call.outcomes) == 1, what="the first outcome, before the second client has ended")
    server.end_pod(other, 1, message="error: no luck -> try again")
    server.mend_job(name, completedIndexes="0", failedIndexes="1")
    server.mend_job(name, conditions=[{"type": "Failed", "status": "True", "reason": "FailedIndexes"}])
    assert call.wait() == {
        "client-000": Outcome("client-000"),
        "client-001": Outcome("client-001", 1, "unexpected error: no luck -> try again"),
    }
    begun = [values for kind, values in trial.told if kind == "client_started"]
    assert begun == [
        {"client": client, "step": "train-client", "pod": pod, "node": "node-1"}
        for client, pod in zip(CLIENTS, (one, other), strict=True)
    ]
    assert trial.lines("client_log") == ["reads its data"], "words for people; events are told as events"
    assert not [kind for kind, _ in trial.told if kind == "report"], "what only a coordinator may say"
    assert server.jobs() == [name], "it is over, and stays to be looked at"
    assert trial.store.read_ref(paths.job(name)) is None, "its list is of no more use"


def test_each_pool_has_a_job_of_its_own_with_its_places(server: ApiServer, trial: Trial) -> None:
    pools = [
        {"name": "silo", "clients": ["client-001"], "data_root": "/silo", "cache": "/cache"}, {"name": "rest"}
    ]  # fmt: skip
    call = trial.train((*CLIENTS, "client-002"), pools=pools)
    jobs = {server.job(n)["metadata"]["labels"]["lwfed/pool"]: server.job(n) for n in (0, 1)}
    lists = {pool: trial.store.read_ref(paths.job(job["metadata"]["name"])) for pool, job in jobs.items()}
    assert [task["client"] for task in lists["silo"]["tasks"]] == ["client-001"]
    assert [task["client"] for task in lists["rest"]["tasks"]] == ["client-000", "client-002"]
    places = {
        pool: [its["tasks"][0]["place"][key] for key in ("root", "cache", "shared")] for pool, its in lists.items()
    }
    assert places == {"silo": ["/silo", "/cache/r", "/cache"], "rest": [None, None, None]}
    for pool, pods in (("silo", [0]), ("rest", [0, 1])):
        for pod in started(server, jobs[pool], pods):
            server.end_pod(pod)
    assert call.wait() == {client: Outcome(client) for client in (*CLIENTS, "client-002")}


def test_no_tasks_need_no_job(server: ApiServer, trial: Trial) -> None:
    launcher = trial.launcher()
    assert list(launcher.clients("train-client", [], deadline_s=1, emit=ignore)) == []
    assert not server.asked("create", "jobs") and launcher.remote


def test_a_client_without_a_pool_is_named_before_anything_is_made(server: ApiServer, trial: Trial) -> None:
    call = trial.train(pools=[{"name": "a", "clients": ["client-000"]}])
    with pytest.raises(SpecError, match="client-001"):
        call.wait()
    assert not server.asked("create", "jobs")


def test_a_failed_pod_is_told_of_while_the_job_starts_it_again(server: ApiServer, trial: Trial) -> None:
    call = trial.train(CLIENTS[:1], retries=1)
    job = server.job()
    (pod,) = started(server, job, [0])
    server.end_pod(pod, 137)
    until(lambda: trial.lines("waiting"), what="the kill is told")
    assert trial.lines("waiting") == ["killed by signal 9: no message; the Job restarts it"]
    (again,) = started(server, job, [0])
    server.end_pod(again)
    assert call.wait() == {"client-000": Outcome("client-000")}
    assert [v["pod"] for k, v in trial.told if k == "client_started"] == [pod, again]


def test_out_of_memory_is_told_with_what_the_ledger_predicts(server: ApiServer, trial: Trial) -> None:
    trial.store.write_ref(
        paths.run("r"), {"stages": [{"stage": 2, "key": KEY}], "predicted": [
            {"stage": 1, "peak_bytes": 1 << 20}, {"stage": 2, "peak_bytes": 96 << 20},
        ]},
    )  # fmt: skip
    call = trial.train(CLIENTS[:1], retries=0, pools=[{"name": "clients", "memory": "64Mi"}])
    job = server.job()
    (pod,) = started(server, job, [0])
    server.end_pod(pod, 137, reason="OOMKilled")
    server.mend_job(job["metadata"]["name"], failedIndexes="0")
    outcome = call.wait()["client-000"]
    assert outcome.exit_code == 18 and "killed at its limit of 64Mi; the ledger predicts 101 MB" in outcome.reason


def test_a_checkpoint_that_is_damaged_ends_all(server: ApiServer, trial: Trial) -> None:
    call = trial.train(retries=0)
    job = server.job()
    one, _ = started(server, job)
    message = event("failed", exit_code=CheckpointError.exit_code, message="round 0 is not committed -> look")
    server.end_pod(one, CheckpointError.exit_code, message=message)
    server.mend_job(job["metadata"]["name"], failedIndexes="0")
    with pytest.raises(CheckpointError, match="client-000: round 0 is not committed"):
        call.wait()
    assert not server.jobs() and not server.objects["pods"], "the others would read the same"


@pytest.mark.parametrize("code", [10, 16, 17])
def test_other_trouble_of_a_pod_is_its_own(server: ApiServer, trial: Trial, code: int) -> None:
    """A pod's disk, its network and its settings are not those of all."""
    call = trial.train(retries=0)
    job = server.job()
    one, other = started(server, job)
    server.end_pod(one, code, message="error: of this pod")
    server.mend_job(job["metadata"]["name"], failedIndexes="0")
    server.end_pod(other)
    outcomes = call.wait()
    assert (outcomes["client-000"].exit_code, outcomes["client-001"].exit_code) == (code, 0)


def test_who_is_late_is_given_up_with_what_it_waits_for_and_its_job_removed(server: ApiServer, trial: Trial) -> None:
    call = trial.train((*CLIENTS, "client-002"), deadline_s=1.5)
    job = server.job()
    (one,) = started(server, job, [0])
    pod = server.add_pod(job, 1)
    server.change("pods", pod, lambda value: value["status"].update(conditions=NO_NODE))
    server.end_pod(one)
    found = call.wait()
    assert found["client-000"].exit_code == 0
    late = "not done before the deadline of 1.5 s"
    assert found["client-001"] == Outcome(
        "client-001", 1, f"{late}; no node fits its pod: Unschedulable: 0/1 nodes are available: 1 x."
    )
    assert found["client-002"] == Outcome("client-002", 1, f"{late}; it has no pod yet")
    assert not server.jobs() and not server.objects["pods"]
    assert any("no node fits its pod" in line for line in trial.lines("waiting"))


def test_who_is_not_needed_any_more_is_stopped_and_did_not_fail(server: ApiServer, trial: Trial) -> None:
    call = trial.train((*CLIENTS, "client-002"), need=1)
    one, _ = started(server, server.job(), [0, 1])
    server.end_pod(one)
    assert call.wait() == {"client-000": Outcome("client-000")}
    assert not server.jobs() and not server.objects["pods"]


def test_a_pod_that_cannot_start_is_given_up_and_its_job_removed(server: ApiServer, trial: Trial) -> None:
    call = trial.train(CLIENTS[:1], pending_timeout_s=1)
    job = server.job()
    pod = server.add_pod(job, 0)
    server.change("pods", pod, lambda value: value["spec"].update(nodeName="node-1"))
    mount = recording("no-volume").events
    found = next(one for one in mount if one["reason"] == "FailedMount")
    server.warn(server.objects["pods"][pod], found["reason"], found["message"])
    outcome = call.wait()["client-000"]
    assert outcome.reason.startswith("given up after 1 s: its pod does not start: FailedMount")
    assert 'configmap "absent" not found' in outcome.reason and not server.jobs()


def test_a_quota_that_leaves_no_room_is_told_in_its_words(server: ApiServer, trial: Trial) -> None:
    call = trial.train(CLIENTS[:1], pending_timeout_s=1)
    job = server.job()
    server.mend_job(job["metadata"]["name"], active=0)
    found = [one for one in recording("over-quota").events if one["reason"] == "FailedCreate"][-1]
    server.warn(job, found["reason"], found["message"])
    outcome = call.wait()["client-000"]
    assert outcome.reason.startswith("given up after 1 s: its pod is not created: exceeded quota: few")
    assert any(line.startswith("its pod is not created: exceeded quota") for line in trial.lines("waiting"))


def test_a_job_that_is_deleted_is_replaced_for_those_who_are_not_done(server: ApiServer, trial: Trial) -> None:
    call = trial.train()
    first = server.job()
    one, _ = started(server, first)
    server.end_pod(one)
    until(lambda: call.outcomes, what="the first outcome")
    server.remove("jobs", first["metadata"]["name"])
    second = server.job(1)
    listed = trial.store.read_ref(paths.job(second["metadata"]["name"]))
    assert [task["client"] for task in listed["tasks"]] == ["client-001"]
    (pod,) = started(server, second, [0])
    server.end_pod(pod)
    assert call.wait() == {client: Outcome(client) for client in CLIENTS}
    (line,) = trial.lines("warning")
    assert line.endswith("ended with 1 task(s) unfinished: the Job was deleted; creating another")


def test_after_so_many_jobs_a_client_is_given_up_with_its_own_reason(server: ApiServer, trial: Trial) -> None:
    call = trial.train(attempts=2, retries=1)
    for n in range(2):
        job = server.job(n)
        one, _ = started(server, job)
        server.end_pod(one, 20, message="error: no sign of life")
        until(lambda: len(trial.lines("waiting")) > n, what="the failure is told")  # noqa: B023
        ended = {"type": "FailureTarget", "status": "True", "reason": "PodFailurePolicy", "message": "exit code 20"}
        server.mend_job(job["metadata"]["name"], failedIndexes="0", conditions=[ended])
    found = call.wait()
    name = server.job(1)["metadata"]["name"]
    assert found["client-000"] == Outcome("client-000", 20, "coordinator gone: no sign of life")
    assert found["client-001"] == Outcome("client-001", 1, f"the Job {name} ended: PodFailurePolicy: exit code 20")
    assert len(server.asked("create", "jobs")) == 2 and name.endswith("-a2")


def test_another_coordinator_goes_on_with_what_is_there(server: ApiServer, trial: Trial) -> None:
    """The first is gone in the middle; one pod has ended meanwhile."""
    tasks = trial.tasks()
    begun: list[str] = []

    def stop(kind: str, values: dict[str, Any]) -> None:
        if kind == "client_started":
            raise KeyboardInterrupt

    first = Working(
        lambda: trial.launcher().clients("train-client", tasks, deadline_s=60, emit=emit_to(stop)),
    )
    job = server.job()
    begun += started(server, job)
    with pytest.raises(KeyboardInterrupt):
        first.wait()
    assert server.jobs(), "whoever stops listening leaves the Jobs as they are"
    server.end_pod(begun[0])
    second = trial.train()
    until(lambda: second.outcomes, what="the outcome of the one that has ended")
    server.end_pod(begun[1])
    assert second.wait() == {client: Outcome(client) for client in CLIENTS}
    assert len(server.asked("create", "jobs")) == 1
    assert trial.lines("warning") == [
        f"takes over the Job {job['metadata']['name']}, which another coordinator created"
    ]


def test_a_server_that_is_away_and_back_loses_nothing(server: ApiServer, trial: Trial) -> None:
    call = trial.train()
    pods = started(server, server.job())
    until(lambda: len([kind for kind, _ in trial.told if kind == "client_started"]) == 2, what="both started")
    server.say(pods[0], "before")
    until(lambda: trial.lines("client_log"), what="a line")
    server.stop()
    server.say(pods[0], "meanwhile")
    server.end_pod(pods[0])
    server.end_pod(pods[1], 1, message="error: no luck")
    server.mend_job(server.job()["metadata"]["name"], completedIndexes="0", failedIndexes="1")
    server.start()
    found = call.wait()
    assert found["client-000"].exit_code == 0
    assert found["client-001"].reason.endswith("no luck")
    assert trial.lines("client_log")[0] == "before" and trial.lines("client_log").count("before") == 1


def test_a_server_that_stays_away_ends_the_call(
    server: ApiServer, trial: Trial, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kubernetes_poll, "PATIENCE_S", 0.6)
    call = trial.train()
    until(lambda: server.asked("list", "pods"), what="a look")
    server.stop()
    with pytest.raises(UnreachableError, match=r"does not answer.*--run-id"):
        call.wait()


def test_lines_of_a_pod_that_nobody_followed_are_shown_when_it_fails(server: ApiServer, trial: Trial) -> None:
    """Who may not follow logs, or was too late, still sees the last words."""
    server.refuse("get", "pods/log", *answer("a Job to make without the right to"))
    call = trial.train(CLIENTS[:1], retries=0)
    job = server.job()
    (pod,) = started(server, job, [0])
    until(lambda: trial.lines("warning"), what="the refusal is told")
    server.say(pod, *(f"line {n}" for n in range(kubernetes_collect.TAIL + 5)), event("client_step", step=1))
    server.end_pod(pod, 1, message="error: no luck")
    server.mend_job(job["metadata"]["name"], failedIndexes="0")
    assert call.wait()["client-000"].exit_code == 1
    assert trial.lines("client_log") == [f"line {n}" for n in range(6, kubernetes_collect.TAIL + 5)]


def test_lines_of_a_pod_that_fails_between_two_looks_are_shown_once(
    server: ApiServer, trial: Trial, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kubernetes_poll, "EVERY_S", 1.0)
    call = trial.train(CLIENTS[:1], retries=0)
    job = server.job()
    until(lambda: server.asked("list", "pods"), what="the first look")
    (pod,) = started(server, job, [0])
    server.say(pod, "line")
    server.end_pod(pod, 1, message="error: no luck")
    server.mend_job(job["metadata"]["name"], failedIndexes="0")
    assert call.wait()["client-000"].exit_code == 1
    assert trial.lines("client_log") == ["line"]
    assert [values["pod"] for kind, values in trial.told if kind == "client_started"] == [pod]


def test_a_job_that_waits_in_a_queue_is_told_of_and_then_runs(server: ApiServer, trial: Trial) -> None:
    call = trial.train(CLIENTS[:1], queue="team", pending_timeout_s=0.5)
    job = server.job()
    assert job["spec"]["suspend"] is True
    until(lambda: trial.lines("waiting"), what="the queue is told")
    assert trial.lines("waiting") == ["waits: its Job is suspended until a queue admits it"]
    time.sleep(0.7)
    server.mend_job(job["metadata"]["name"], suspend=False)
    (pod,) = started(server, job, [0])
    server.end_pod(pod)
    assert call.wait() == {"client-000": Outcome("client-000")}, "a queue is waited for, however long it is"


def test_the_servers_step_runs_in_a_pod_of_its_pool(server: ApiServer, trial: Trial) -> None:
    call = trial.aggregate(server={"name": "server", "memory": "8Gi"})
    job = server.job()
    assert job["metadata"]["name"] == "lwfed-1a2b3c4d-r001-aggregate-server-a1"
    assert "activeDeadlineSeconds" not in job["spec"], "it takes as long as it takes"
    (pod,) = started(server, job, [0])
    server.end_pod(pod)
    assert call.wait() == {}
    assert [values["client"] for kind, values in trial.told if kind == "client_started"] == ["server"]


def test_the_servers_step_raises_what_its_pod_told(server: ApiServer, trial: Trial) -> None:
    call = trial.aggregate(retries=0)
    job = server.job()
    (pod,) = started(server, job, [0])
    server.end_pod(pod, 1, message=event("failed", exit_code=11, message="no examples -> name some"))
    server.mend_job(job["metadata"]["name"], failedIndexes="0")
    with pytest.raises(DataError, match="no examples") as caught:
        call.wait()
    assert caught.value.remedy == "name some"


def test_a_servers_pod_that_cannot_start_is_not_left_behind(server: ApiServer, trial: Trial) -> None:
    call = trial.aggregate(pending_timeout_s=0.5)
    job = server.job()
    pod = server.add_pod(job, 0)
    server.change("pods", pod, lambda value: value["status"].update(conditions=NO_NODE))
    with pytest.raises(LwfedError, match=r"given up after 0\.5 s: no node fits its pod"):
        call.wait()
    assert not server.jobs(), "with room again it would start for nobody"


def test_a_servers_step_that_is_done_needs_no_pod(server: ApiServer, trial: Trial) -> None:
    trial.store.write_ref(paths.round_checkpoint(KEY, 1), {})
    assert trial.aggregate().wait() == {}
    trial.store.write_ref(paths.round_metrics(KEY, 1), {})
    done = RoundTask(store="s", run_id="r", stage_key=KEY, server_round=1)
    trial.launcher().server("evaluate-round", done, emit=ignore)
    assert not server.asked("create", "jobs")


def test_a_step_is_not_done_because_another_is(server: ApiServer, trial: Trial) -> None:
    for key in (paths.round_metrics(KEY, 1), paths.round_checkpoint(KEY, 2), paths.accepted(KEY, 1)):
        trial.store.write_ref(key, {})
    call = trial.aggregate()
    (pod,) = started(server, server.job(), [0])
    server.end_pod(pod)
    assert call.wait() == {}


def test_a_look_at_data_is_a_call_of_the_runs_own(server: ApiServer, trial: Trial) -> None:
    launcher = trial.launcher()
    tasks = [InspectTask(store="s", run_id="r", client=client, spec={}) for client in CLIENTS]
    call = Working(lambda: launcher.clients("inspect-client", tasks, deadline_s=60, emit=emit_to(trial.emit)))
    job = server.job()
    assert "-inspect-clients-a1" in job["metadata"]["name"] and "-r0" not in job["metadata"]["name"]
    for pod in started(server, job):
        server.end_pod(pod)
    assert call.wait() == {client: Outcome(client) for client in CLIENTS}


def test_a_manifest_that_is_refused_ends_the_call_and_leaves_no_job(server: ApiServer, trial: Trial) -> None:
    """The first pool's Job is made before the second's is refused."""
    pools = [{"name": "a", "clients": ["client-000"]}, {"name": "b"}]
    server.refuse("create", "jobs", *answer("a Job that is not valid"), skip=1)
    with pytest.raises(SpecError, match=r"spec\.parallelism"):
        trial.train(pools=pools).wait()
    assert server.job() and not server.jobs()


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("no valid token", r"the cluster at .* rejects our credentials: Unauthorized -> .*KUBECONFIG"),
        ("a Job to make without the right to", r"not allowed to create jobs .* the Role `lwfed-coordinator`"),
        ("a Job beyond a quota", r"exceeded quota: jobs.* -> check which quota"),
    ],
)
def test_who_may_not_is_told_why_and_what_to_do(server: ApiServer, trial: Trial, what: str, words: str) -> None:
    server.refuse("create", "jobs", *answer(what))
    with pytest.raises(UnreachableError, match=words):
        trial.train().wait()
    assert not server.jobs()


def test_no_pod_is_handed_the_mlflow_run_that_is_the_coordinators(
    server: ApiServer, trial: Trial, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_RUN_ID", "platforms")
    call = trial.train(CLIENTS[:1])
    job = server.job()
    container = job["spec"]["template"]["spec"]["containers"][0]
    names = {entry["name"]: entry.get("value") for entry in container["env"]}
    assert "MLFLOW_RUN_ID" not in names and names["LWFED_MLFLOW_PARENT_RUN_ID"] == "platforms"
    assert names["LWFED_RUN_ID"] == "r"
    (pod,) = started(server, job, [0])
    server.end_pod(pod)
    call.wait()


def test_jobs_of_a_run_are_removed_by_its_name_and_its_agents_have_no_more_to_do(
    server: ApiServer, trial: Trial, tmp_path: Path
) -> None:
    labels = {"app.kubernetes.io/managed-by": "lwfed", "lwfed/run": "r"}
    for name, run in (("a", "r"), ("b", "r"), ("c", "another")):
        job = {"metadata": {"name": name, "labels": {**labels, "lwfed/run": run}}, "spec": {}}
        server.add("jobs", job)
    store = LocalStore(tmp_path / "store")
    store.write_ref(paths.wants("r"), {})
    spec = build_spec({"kubernetes": {"namespace": NAMESPACE}, "store": {"uri": str(store.root)}})
    for _ in range(2):
        end_run(spec, run_id="r")
        assert server.jobs() == ["c"] and not store.has(paths.wants("r"))


def test_jobs_are_removed_even_if_the_store_does_not_answer(
    server: ApiServer, trial: Trial, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels = {"app.kubernetes.io/managed-by": "lwfed", "lwfed/run": "r"}
    server.add("jobs", {"metadata": {"name": "a", "labels": labels}, "spec": {}})

    def refuse(self: LocalStore, *keys: str) -> None:
        raise UnreachableError("the store does not answer", remedy="wait")

    monkeypatch.setattr(LocalStore, "delete", refuse)
    spec = build_spec({"kubernetes": {"namespace": NAMESPACE}, "store": {"uri": str(tmp_path / "store")}})
    with pytest.raises(UnreachableError, match="does not answer"):
        end_run(spec, run_id="r")
    assert not server.jobs()


def test_without_a_cluster_no_launcher_is_made(
    server: ApiServer, trial: Trial, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "absent"))
    with pytest.raises(UnreachableError, match="no Kubernetes cluster is configured"):
        trial.launcher()
    assert kubernetes_api.current_namespace() == "default"
