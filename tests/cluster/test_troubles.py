"""Pods of a real cluster that are killed, starved, misplaced or late: each ends well, or in one clear line."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from typing import Any

import pytest

from lwfed.launch.kubernetes.api import connect
from lwfed.launch.kubernetes.jobs import delete_run_jobs
from lwfed.launch.kubernetes.launcher import KubernetesLauncher
from lwfed.launch.kubernetes.names import INDEX_LABEL, run_selector
from lwfed.round.train_client import train_client
from lwfed.run import runs
from lwfed.run.heartbeat import beating
from lwfed.run.launcher import Outcome
from lwfed.spec.run import RunSpec
from lwfed.store import paths
from lwfed.store.opening import open_store
from lwfed.types.errors import CoordinatorGoneError, OutOfMemoryError
from tests.cluster.bed import Bed, pool, until
from tests.events import emit_to
from tests.s3 import Server
from tests.tiny import begun, client_task

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

CLIENTS = ("client-000", "client-001")
WALL_CLOCK = {"wall_s", "peak_rss_bytes"}


class Trial:
    """A stage that is begun, and one round of its clients."""

    def __init__(self, bed: Bed, spec: RunSpec, *overrides: str) -> None:
        self.bed, self.spec = bed, spec
        store = open_store(spec.store.uri)
        self.bench, self.stage, _ = begun("unused", f"store.uri={spec.store.uri}", *overrides, store=store)
        (self.run_id,) = runs.run_ids(store)
        self.told: list[tuple[str, dict[str, Any]]] = []
        self.selector = run_selector(self.run_id)

    def emit(self, kind: str, values: dict[str, Any]) -> None:
        self.told.append((kind, values))

    def lines(self, kind: str) -> list[str]:
        key = "message" if kind == "warning" else "line"
        return [values[key] for name, values in self.told if name == kind]

    @contextmanager
    def launcher(self) -> Iterator[KubernetesLauncher]:
        made = KubernetesLauncher(self.spec, store=self.bench.store, run_id=self.run_id)
        settings = self.spec.kubernetes
        try:
            with beating(self.bench.store, self.run_id, every_s=settings.heartbeat_s, by="a test"):
                yield made
        finally:
            made.close()

    def train(self, *clients: str, deadline_s: float = 300) -> dict[str, Outcome]:
        """Has clients train; returns how they ended."""
        tasks = [client_task(self.bench, self.stage, client) for client in clients or CLIENTS]
        with self.launcher() as launcher:
            outcomes = launcher.clients("train-client", tasks, deadline_s=deadline_s, emit=emit_to(self.emit))
            return {outcome.client: outcome for outcome in outcomes}

    def update(self, client: str) -> Any:
        return self.bench.store.read_ref(paths.update(self.stage.key, 1, client))


@pytest.fixture
def trial(bed: Bed, uri: str, request: pytest.FixtureRequest) -> Iterator[Trial]:
    """A round of the tiny experiment; its Jobs are removed afterwards."""
    settings = dict(getattr(request, "param", {}))
    overrides = settings.pop("overrides", [])
    made = Trial(bed, bed.spec(uri, *overrides, kubernetes=settings), *overrides)
    yield made
    delete_jobs(made.run_id, namespace=bed.namespace)


def delete_jobs(run_id: str, *, namespace: str) -> int:
    """Deletes all Jobs of a run; returns their number."""
    with closing(connect(namespace)) as cluster:
        return len(delete_run_jobs(cluster, run_id))


def same(update: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two updates are alike but for the clock."""

    def timeless(value: Mapping[str, Any]) -> dict[str, Any]:
        return {**value, "metrics": {k: v for k, v in value["metrics"].items() if k not in WALL_CLOCK}}

    return timeless(update) == timeless(other)


@contextmanager
def meanwhile(deed: Any) -> Iterator[None]:
    """Does something while the body waits; what it raises is raised here."""
    failed: list[BaseException] = []

    def run() -> None:
        try:
            deed()
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    yield
    thread.join(timeout=60)
    if failed:
        raise failed[0]


def test_updates_of_pods_are_those_of_this_process(trial: Trial, tmp_path: Any) -> None:
    outcomes = trial.train()
    assert {client: outcome.exit_code for client, outcome in outcomes.items()} == dict.fromkeys(CLIENTS, 0)
    here, stage, _ = begun(tmp_path)
    assert stage.key == trial.stage.key
    for client in CLIENTS:
        assert same(trial.update(client), train_client(client_task(here, stage, client), bench=here))
    started = [values for kind, values in trial.told if kind == "client_started"]
    assert sorted(values["client"] for values in started) == sorted(CLIENTS)
    assert all(values["pod"] and values["node"] for values in started)
    assert {values["step"] for kind, values in trial.told if kind == "client_step"} == {1, 2}
    (job,) = trial.bed.jobs(trial.selector)
    assert job["spec"]["completionMode"] == "Indexed" and job["spec"]["completions"] == 2
    assert job["spec"]["podFailurePolicy"]["rules"][0]["action"] == "Ignore"


@pytest.mark.parametrize("trial", [{"overrides": ["training.local_epochs=1500"]}], indirect=True, ids=["3000 steps"])
def test_a_killed_pod_and_a_killed_process_are_started_again(trial: Trial) -> None:
    def kill() -> None:
        pods = [trial.bed.running_pod(f"{trial.selector},{INDEX_LABEL}={index}") for index in (0, 1)]
        trial.bed.run("delete", "pod", pods[0], "--grace-period=0", "--force")
        trial.bed.kill_process(pods[1])

    with meanwhile(kill):
        outcomes = trial.train()
    assert [outcomes[client].exit_code for client in CLIENTS] == [0, 0]
    assert trial.update("client-000") and trial.update("client-001")
    told = {values["client"]: values["line"] for kind, values in trial.told if kind == "waiting"}
    assert "deleted" in told["client-000"] or "signal" in told["client-000"], told
    assert "killed by signal 9" in told["client-001"] and "the Job restarts it" in told["client-001"], told


@pytest.mark.parametrize(
    "trial", [{"pools": [pool("clients", memory="64Mi")], "retries": 1}], indirect=True, ids=["64Mi"]
)
def test_out_of_memory_is_named_with_the_limit_and_the_prediction(trial: Trial) -> None:
    outcome = trial.train("client-000")["client-000"]
    assert outcome.exit_code == OutOfMemoryError.exit_code
    assert "killed at its limit of 64Mi" in outcome.reason and "the ledger predicts" in outcome.reason
    assert "memory of the pool `clients`" in outcome.reason
    pods = trial.bed.pods(trial.selector)
    assert len(pods) == 2, "one retry, and then no more"


@pytest.mark.parametrize(
    "trial", [{"pools": [pool("clients", cpu="640")], "pending_timeout_s": 8}], indirect=True, ids=["640 CPUs"]
)
def test_a_pod_that_fits_nowhere_is_given_up_with_the_schedulers_words(trial: Trial) -> None:
    started = time.monotonic()
    outcome = trial.train("client-000")["client-000"]
    assert time.monotonic() - started < 40
    assert outcome.exit_code == 1 and outcome.reason.startswith("given up after 8 s: no node fits its pod")
    assert "Insufficient cpu" in outcome.reason
    assert any("Insufficient cpu" in line for line in trial.lines("waiting"))
    until(lambda: not trial.bed.jobs(trial.selector), within_s=30, what="the Job is removed")


@pytest.mark.parametrize(
    "trial",
    [
        {
            "pools": [pool("clients", image="docker.io/lab/absent:1")],
            "pending_timeout_s": 10,
            "image_pull_policy": "IfNotPresent",
        }
    ],
    indirect=True,
    ids=["absent"],
)
def test_a_missing_image_is_given_up_with_its_name(trial: Trial) -> None:
    outcome = trial.train("client-000")["client-000"]
    assert outcome.exit_code == 1 and "its image cannot be pulled" in outcome.reason
    assert "docker.io/lab/absent:1" in outcome.reason


def test_an_evicted_pod_is_nobodys_fault(trial: Trial) -> None:
    """It is started again, though no retries are left for failures."""
    trial.spec = trial.spec.model_copy(update={"kubernetes": trial.spec.kubernetes.model_copy(update={"retries": 0})})

    def evict() -> None:
        name = trial.bed.running_pod(trial.selector)
        eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name}}
        path = f"/api/v1/namespaces/{trial.bed.namespace}/pods/{name}/eviction"
        trial.bed.run("create", "--raw", path, "-f", "-", text=json.dumps(eviction))

    with meanwhile(evict):
        outcomes = trial.train("client-000")
    assert outcomes["client-000"].exit_code == 0, outcomes
    told = trial.lines("waiting")
    assert any("EvictionByEvictionAPI" in line for line in told), told


@pytest.mark.parametrize("trial", [{"pools": [pool("clients", cpu="640")]}], indirect=True, ids=["640 CPUs"])
def test_a_client_that_is_late_is_given_up_with_what_it_waits_for(trial: Trial) -> None:
    outcomes = trial.train(deadline_s=6)
    assert set(outcomes) == set(CLIENTS)
    for outcome in outcomes.values():
        assert outcome.exit_code == 1 and "deadline of 6 s" in outcome.reason
        assert "Insufficient cpu" in outcome.reason
    until(lambda: not trial.bed.jobs(trial.selector), within_s=30, what="the Job is removed")


def test_another_coordinator_goes_on_with_the_same_pods(trial: Trial) -> None:
    tasks = [client_task(trial.bench, trial.stage, client) for client in CLIENTS]
    with trial.launcher() as first:
        outcomes = first.clients("train-client", tasks, deadline_s=300, emit=emit_to(trial.emit))
        thread = threading.Thread(target=lambda: next(outcomes), daemon=True)
        thread.start()
        trial.bed.running_pod(trial.selector)
        (before,) = trial.bed.jobs(trial.selector)
        found = {outcome.client: outcome for outcome in trial.train().values()}
        thread.join(timeout=60)
    assert {client: outcome.exit_code for client, outcome in found.items()} == dict.fromkeys(CLIENTS, 0)
    (after,) = trial.bed.jobs(trial.selector)
    assert before["metadata"]["uid"] == after["metadata"]["uid"]
    assert len(trial.bed.pods(trial.selector)) == 2, "nothing was started twice"
    assert any("which another coordinator created" in line for line in trial.lines("warning"))


def test_a_failed_job_is_followed_by_another_and_a_deleted_one_replaced(trial: Trial) -> None:
    def delete() -> None:
        trial.bed.running_pod(trial.selector)
        trial.bed.run("delete", "job", "-l", trial.selector, "--wait=false")

    with meanwhile(delete):
        outcomes = trial.train("client-000")
    assert outcomes["client-000"].exit_code == 0
    assert any("the Job was deleted" in line for line in trial.lines("warning"))


@pytest.mark.parametrize(
    "trial",
    [{"heartbeat_s": 1, "heartbeat_timeout_s": 3, "overrides": ["training.local_epochs=20000"]}],
    indirect=True,
    ids=["3s"],
)
def test_pods_end_by_themselves_when_their_coordinator_is_gone(trial: Trial) -> None:
    tasks = [client_task(trial.bench, trial.stage, "client-000")]
    with trial.launcher() as launcher:
        outcomes = launcher.clients("train-client", tasks, deadline_s=300, emit=emit_to(trial.emit))
        thread = threading.Thread(target=lambda: next(outcomes, None), daemon=True)
        thread.start()
        until(lambda: [kind for kind, _ in trial.told if kind == "client_step"], within_s=60, what="a step")

    def code() -> int | None:
        for pod in trial.bed.pods(trial.selector):
            for status in pod["status"].get("containerStatuses") or ():
                if "terminated" in status["state"]:
                    return int(status["state"]["terminated"]["exitCode"])
        return None

    assert until(code, within_s=60, what="a pod ends") == CoordinatorGoneError.exit_code
    assert trial.update("client-000") is None
    conditions = until(
        lambda: [c for job in trial.bed.jobs(trial.selector) for c in job["status"].get("conditions") or ()],
        within_s=30,
        what="the Job ends",
    )
    assert {condition["reason"] for condition in conditions} == {"PodFailurePolicy"}, "and is not begun again"


def test_a_server_that_is_gone_for_a_while_is_waited_for(trial: Trial, minio: Server) -> None:
    def restart() -> None:
        trial.bed.running_pod(trial.selector)
        minio.kill()
        time.sleep(8)
        minio.start()

    with meanwhile(restart):
        outcomes = trial.train()
    assert {client: outcome.exit_code for client, outcome in outcomes.items()} == dict.fromkeys(CLIENTS, 0)


def test_jobs_of_a_run_are_removed_by_its_name(trial: Trial) -> None:
    other = Trial(trial.bed, trial.bed.spec(f"{trial.spec.store.uri}-other"))
    assert trial.train("client-000")["client-000"].exit_code == 0
    assert other.train("client-001")["client-001"].exit_code == 0
    assert delete_jobs(trial.run_id, namespace=trial.bed.namespace) == 1
    until(lambda: not trial.bed.jobs(trial.selector), within_s=30, what="the Job is removed")
    assert len(trial.bed.jobs(other.selector)) == 1
    assert delete_jobs(other.run_id, namespace=trial.bed.namespace) == 1
