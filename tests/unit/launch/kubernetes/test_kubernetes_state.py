"""A Job's news become facts of its clients: the same whatever the order, each once, and with the cluster's reason."""

from __future__ import annotations

import random
from collections.abc import Iterable
from functools import partial
from typing import Any

import pytest

from lwfed.launch.kubernetes.manifests import CONTAINER
from lwfed.launch.kubernetes.reasons import failure
from lwfed.launch.kubernetes.state import BROKEN_S, SETTLE_S, SUSPENDED, Fact, JobHandle, JobState
from lwfed.run.events import ClientStarted, ClientWaiting
from lwfed.run.launcher import Outcome
from lwfed.spec.kubernetes import KubernetesSpec
from tests.unit.launch.recordings import Recording, names, recording

OTHERS_JOB = {"metadata": {"name": "other", "uid": "another"}, "spec": {}, "status": {"completedIndexes": "0"}}


class Watched(JobState):
    """A Job's state that looks again at what there is after each piece of news."""

    def __init__(self, **values: Any) -> None:
        super().__init__(**values)
        self.jobs: dict[str, Any] = {self.handle.uid: {"metadata": {"uid": self.handle.uid}, "spec": {}}}
        self.pods: dict[str, Any] = {}

    def hear(self, news: Iterable[tuple[float, str, str, dict[str, Any]]]) -> list[Fact]:
        """Looks after each of some news."""
        facts: list[Fact] = []
        for at, resource, kind, value in news:
            known = self.jobs if resource == "jobs" else self.pods
            known[value["metadata"]["uid"]] = value
            if kind == "DELETED":
                del known[value["metadata"]["uid"]]
            facts += self.wait(now=at)
        return facts

    def wait(self, *, now: float) -> list[Fact]:
        """Looks at what there is."""
        return self.look(self.jobs.get(self.handle.uid), self.pods.values(), now=now, busy=False)


def state_of(
    recorded: Recording,
    *,
    uid: str = "",
    clients: tuple[str, ...] = (),
    retries: int = 0,
    pending_timeout_s: float = 600,
    **values: Any,
) -> Watched:
    name, clients = recorded.job["metadata"]["name"], clients or recorded.clients
    return Watched(
        **{
            "handle": JobHandle(name=name, uid=uid or recorded.uid, clients=clients, adopted=False),
            "step": "train-client",
            "open": set(clients),
            "settings": KubernetesSpec(retries=retries, pending_timeout_s=pending_timeout_s),
            "explain": partial(failure, container=CONTAINER, memory_limit="64Mi", pool="p"),
        }
        | values
    )


def replay(name: str, *, until_s: float = 0, **values: Any) -> tuple[Watched, list[Fact]]:
    """Tells a recording at its own pace, and goes on for some seconds."""
    recorded = recording(name)
    state, facts, now = state_of(recorded, **values), [], 0.0
    for news in recorded.heard:
        while now < news[0]:
            facts += state.wait(now=now)
            now += 0.5
        facts += state.hear([news])
    while now < until_s:
        facts += state.wait(now=now)
        now += 0.5
    return state, facts


def ends(facts: Iterable[Fact]) -> dict[str, tuple[int, str]]:
    """Gives how clients ended, each once."""
    found = [fact for fact in facts if isinstance(fact, Outcome)]
    assert len({outcome.client for outcome in found}) == len(found), found
    return {outcome.client: (outcome.exit_code, outcome.reason) for outcome in found}


def lines(facts: Iterable[Fact]) -> list[str]:
    return [fact.line for fact in facts if isinstance(fact, ClientWaiting)]


def test_pods_that_end_well_start_once_and_end_once() -> None:
    state, facts = replay("succeeds")
    started = [fact for fact in facts if isinstance(fact, ClientStarted)]
    assert sorted(fact.client for fact in started) == list(recording("succeeds").clients)
    assert all(fact.node == "node-1" and str(fact.pod).startswith("succeeds-") for fact in started)
    assert ends(facts) == dict.fromkeys(recording("succeeds").clients, (0, ""))
    assert state.succeeded and state.is_over and not state.has_live_pods and not lines(facts)


ENDS: dict[str, dict[str, tuple[int, str]]] = {
    "succeeds": {f"client-00{n}": (0, "") for n in range(3)},
    "out-of-memory": {"client-000": (18, "out of memory: killed at its limit of 64Mi")},
    "final-codes": {
        "client-000": (10, "the spec's clients are wrong -> mend it"),
        "client-001": (11, "bad data: no column age"),
        "client-002": (14, "training diverged: the loss is nan"),
        "client-003": (0, ""),
    },
    "fails-twice": {"client-000": (1, "unexpected error: KeyError: 7")},
    "under-torchrun": {"client-000": (18, "out of GPU memory")},
    "no-program": {"client-000": (128, "its container could not start")},
    "deleted-pod": {"client-000": (143, "killed by signal 15")},
}
RETRIES = {"killed": 1, "final-codes": 2, "fails-twice": 1}


def same_ends(name: str, facts: Iterable[Fact]) -> None:
    found = ends(facts)
    assert set(found) == set(ENDS[name])
    for client, (code, words) in ENDS[name].items():
        assert found[client][0] == code and found[client][1].startswith(words), (client, found[client])


@pytest.mark.parametrize("name", sorted(ENDS))
def test_clients_end_with_the_code_and_the_words_of_their_last_pod(name: str) -> None:
    state, facts = replay(name, retries=RETRIES.get(name, 0))
    same_ends(name, facts)
    assert not state.open and state.lost is None
    assert state.succeeded == (name == "succeeds") and state.is_over


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", sorted(ENDS))
def test_news_of_jobs_and_pods_may_come_in_any_order(name: str, seed: int) -> None:
    """Each resource's news keep their order; those of Jobs and of pods come as they like."""
    chance = random.Random(f"{name}-{seed}")
    heard = recording(name).heard
    queues = [[n for n in heard if n[1] == resource] for resource in ("jobs", "pods")]
    state, facts = state_of(recording(name), retries=RETRIES.get(name, 0)), []
    while any(queues):
        queue = chance.choice([queue for queue in queues if queue])
        _, resource, kind, value = queue.pop(0)
        facts += state.hear([(0.0, resource, kind, value)])
    same_ends(name, facts + state.wait(now=SETTLE_S + 1))


@pytest.mark.parametrize("name", sorted(ENDS))
def test_one_list_of_all_that_is_tells_as_much_as_all_news(name: str) -> None:
    """As a coordinator hears it that comes late; pods that are removed have left no word."""
    late, state = (state_of(recording(name), retries=RETRIES.get(name, 0)) for _ in range(2))
    late.hear(recording(name).heard)
    state.jobs, state.pods = late.jobs, late.pods
    facts = state.wait(now=0) + state.wait(now=SETTLE_S + 1)
    if name == "deleted-pod":
        assert ends(facts) == {"client-000": (1, "its pods failed without a message")}
    else:
        same_ends(name, facts)
    assert not state.wait(now=SETTLE_S + 2), "another list tells nothing new"


@pytest.mark.parametrize("name", sorted(ENDS))
def test_facts_of_clients_of_no_concern_are_not_told(name: str) -> None:
    _, facts = replay(name, open=set(), retries=RETRIES.get(name, 0))
    assert not facts


@pytest.mark.parametrize("name", names())
def test_news_of_another_job_of_the_same_name_say_nothing(name: str) -> None:
    state = state_of(recording(name), uid="another")
    assert not state.hear(recording(name).heard)
    assert state.open == set(recording(name).clients)
    assert not state_of(recording(name)).hear([(0.0, "jobs", "MODIFIED", OTHERS_JOB)])


def test_a_killed_process_is_told_and_started_again() -> None:
    state, facts = replay("killed", retries=1)
    assert lines(facts) == ["killed by signal 9: trains; the Job restarts it"]
    assert len([fact for fact in facts if isinstance(fact, ClientStarted)]) == 2, "each pod's log is followed"
    assert state.open == {"client-000"} and state.has_live_pods and not state.is_over


def test_retries_are_counted() -> None:
    _, facts = replay("fails-twice", retries=1)
    assert lines(facts) == ["unexpected error: KeyError: 7; the Job restarts it"], "the first time alone"
    _, none = replay("fails-twice", retries=0)
    assert not lines(none)
    assert ends(facts) == ends(none)


def test_an_evicted_pod_is_started_again_though_there_are_no_retries() -> None:
    state, facts = replay("evicted", retries=0)
    (line,) = lines(facts)
    assert line.startswith("its pod was evicted: EvictionByEvictionAPI") and line.endswith("restarts it")
    assert state.open == {"client-000"} and not ends(facts) and state.lost is None
    assert len([fact for fact in facts if isinstance(fact, ClientStarted)]) == 2


def test_a_final_code_ends_a_client_at_once_though_the_job_would_try_again() -> None:
    """As where torchrun hides the code from the cluster."""
    recorded = recording("under-torchrun")
    (pod,) = [pod for pod in recorded.pods() if pod["status"]["phase"] == "Failed"][:1]
    terminated = pod["status"]["containerStatuses"][0]["state"]["terminated"]
    terminated["message"] = terminated["message"].replace('"exit_code": 18', '"exit_code": 10')
    state = state_of(recorded, retries=5)
    assert ends(state.hear([(0.0, "pods", "MODIFIED", pod)])) == {
        "client-000": (10, "out of GPU memory -> lower training.batch_size")
    }


def test_a_failed_index_waits_a_little_for_its_pods_word() -> None:
    recorded = recording("out-of-memory")
    state = state_of(recorded)
    assert not state.hear([(0.0, "jobs", "MODIFIED", recorded.job)])
    assert not state.wait(now=SETTLE_S)
    assert ends(state.wait(now=SETTLE_S + 0.1)) == {"client-000": (1, "its pods failed without a message")}


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("coordinator-gone", "PodFailurePolicy: Container lwfed for pod"),
        ("too-late", "DeadlineExceeded: Job was active longer"),
        ("deleted-job", "the Job was deleted"),
    ],
)
def test_a_job_that_is_over_before_its_clients_is_lost_once(name: str, words: str) -> None:
    state, facts = replay(name, until_s=700)
    assert state.lost is not None and state.lost.startswith(words)
    assert not ends(facts) and state.open == set(recording(name).clients)
    assert state.is_over and not state.succeeded


def test_a_lost_job_knows_why_its_client_failed() -> None:
    state, _ = replay("coordinator-gone")
    assert state.failures["client-000"].exit_code == 20 and "client-001" not in state.failures


def test_a_job_that_fails_after_its_clients_ended_is_not_lost() -> None:
    state, facts = replay("too-late", open=set())
    assert not facts and state.lost is None and state.is_over


def test_a_deleted_pod_is_told_of_and_another_is_awaited() -> None:
    recorded = recording("deleted-pod")
    running = [pod for pod in recorded.pods() if pod["status"]["phase"] == "Running"][-1]
    state = state_of(recorded)
    state.hear([(0.0, "pods", "ADDED", running)])
    assert state.has_live_pods
    facts = state.hear([(1.0, "pods", "DELETED", running)])
    name = running["metadata"]["name"]
    assert lines(facts) == [f"its pod {name} was deleted; the Job creates another"]
    assert not state.has_live_pods and state.without_pod() == ["client-000"]


def test_waits_for_the_same_are_told_once_and_together() -> None:
    state, facts = replay("fits-nowhere", until_s=60)
    (line,) = lines(facts)
    assert line.startswith("waits (and 1 other): no node fits its pod: Unschedulable") and not ends(facts)
    assert not state.unexplained(now=60, after_s=5), "its status says why"


def test_a_pod_that_fits_nowhere_is_given_up_when_its_time_is_over() -> None:
    state, facts = replay("fits-nowhere", until_s=19, pending_timeout_s=20)
    assert not ends(facts)
    facts = state.wait(now=30)
    found = ends(facts)
    assert set(found) == {"client-000", "client-001"}
    assert all(code == 1 and why.startswith("given up after 20 s: no node fits") for code, why in found.values())
    assert not state.succeeded and not state.is_over, "its Job is to be removed"


def test_a_missing_image_is_given_up_sooner_and_told_once_though_pull_and_wait_take_turns() -> None:
    _, facts = replay("no-image", until_s=BROKEN_S + 3)
    assert not ends(facts), "a minute from the first refusal on"
    _, facts = replay("no-image", until_s=BROKEN_S + 10)
    (code, why) = ends(facts)["client-000"]
    assert code == 1 and why.startswith(f"given up after {BROKEN_S:g} s: its image cannot be pulled")
    assert "docker.io/lab/absent:1" in why and "failed to resolve reference" in why
    assert "kubernetes.image" in why.partition(" -> ")[2], "with what helps"
    assert len(lines(facts)) == 1


def test_a_wait_for_the_next_pull_does_not_hide_why_the_last_one_failed() -> None:
    """Older kubelets say of the wait nothing but that it is one."""
    recorded = recording("no-image")
    state = state_of(recorded, pending_timeout_s=20)
    for at, resource, kind, value in recorded.heard:
        for status in value["status"].get("containerStatuses") or ():
            if status["state"]["waiting"]["reason"] == "ImagePullBackOff":
                status["state"]["waiting"]["message"] = 'Back-off pulling image "docker.io/lab/absent:1"'
                state.hear([(at, resource, kind, value)])
                assert "failed to resolve reference" in state.why_open("client-000")
                return
        state.hear([(at, resource, kind, value)])
    raise AssertionError("nothing waits")


def test_a_missing_secret_is_given_up_sooner_with_its_name() -> None:
    _, facts = replay("no-secret", until_s=BROKEN_S + 10)
    assert 'secret "absent" not found' in ends(facts)["client-000"][1]


def test_a_pods_events_say_why_it_does_not_start() -> None:
    recorded = recording("no-volume")
    state, _ = replay("no-volume", until_s=8, pending_timeout_s=20)
    (uid,) = state.unexplained(now=8, after_s=5)
    assert uid == recorded.pods()[-1]["metadata"]["uid"] and not state.unexplained(now=3, after_s=5)
    state.on_events(uid, recorded.events_of(uid))
    facts = state.wait(now=8) + state.wait(now=8 + SETTLE_S)
    assert ["FailedMount" in line for line in lines(facts)] == [True]
    assert 'configmap "absent" not found' in ends(state.wait(now=25))["client-000"][1]


def test_a_pod_without_a_word_is_given_up_too() -> None:
    state, _ = replay("no-volume", pending_timeout_s=20)
    assert "unknown reason" in ends(state.wait(now=25))["client-000"][1]


def test_where_one_is_given_up_those_who_wait_behind_it_are_too_unless_others_work() -> None:
    """Two pods at a time of four clients: one is stuck."""
    recorded = recording("fits-nowhere")
    clients = tuple(f"client-00{n}" for n in range(4))
    state = state_of(recorded, clients=clients, pending_timeout_s=20)
    state.hear(recorded.heard)
    assert set(ends(state.wait(now=30))) == set(clients)
    other = state_of(recorded, clients=clients, pending_timeout_s=20)
    running = recording("killed").pods()[-1]
    running["metadata"] |= {"ownerReferences": recorded.pods()[0]["metadata"]["ownerReferences"], "uid": "running"}
    running["metadata"]["labels"]["batch.kubernetes.io/job-completion-index"] = "2"
    other.hear([*recorded.heard, (5.0, "pods", "ADDED", running)])
    assert set(ends(other.wait(now=30))) == {"client-000", "client-001"}


def test_a_suspended_job_is_told_once_and_never_given_up() -> None:
    state, facts = replay("queued", until_s=2000, pending_timeout_s=5)
    assert lines(facts) == [f"waits (and 1 other): {SUSPENDED}"]
    assert not ends(facts) and state.lost is None
    assert not state.unexplained(now=2000, after_s=5), "a queue has not let it go"
    assert state.why_open("client-000") == SUSPENDED


def test_a_quota_is_told_once_in_its_words_and_given_up_in_time() -> None:
    recorded = recording("over-quota")
    state, _ = replay("over-quota", pending_timeout_s=20)
    assert state.unexplained(now=5, after_s=5) == [recorded.uid] and state.without_pod() == ["client-000"]
    state.on_events(recorded.uid, recorded.events_of(recorded.uid))
    (line,) = lines(state.wait(now=5))
    assert line.startswith("its pod is not created: exceeded quota: few")
    assert not state.wait(now=6)
    assert state.why_open("client-000").startswith("its pod is not created: exceeded quota")
    assert not state.wait(now=24)
    _, why = ends(state.wait(now=26))["client-000"]
    assert (
        why.startswith("given up after 20 s: its pod is not created: exceeded") and "quota" in why.partition(" -> ")[2]
    )


def test_a_quota_with_room_again_is_forgotten() -> None:
    recorded = recording("over-quota")
    state, _ = replay("over-quota", pending_timeout_s=20)
    state.on_events(recorded.uid, recorded.events_of(recorded.uid))
    assert lines(state.wait(now=5))
    pod = recording("killed").pods()[-1]
    pod["metadata"]["ownerReferences"] = [{"uid": recorded.uid}]
    state.hear([(10.0, "pods", "ADDED", pod)])
    assert not state.unexplained(now=100, after_s=5) and not ends(state.wait(now=100))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("fits-nowhere", "no node fits its pod"),
        ("no-secret", "its container cannot be created"),
        ("killed", ""),
    ],
)
def test_a_late_client_has_what_it_waits_for(name: str, words: str) -> None:
    state, _ = replay(name, retries=2)
    found = state.why_open("client-000")
    assert found.startswith(words) and bool(found) == bool(words)


def test_a_late_client_without_a_pod_has_its_last_failure() -> None:
    heard = recording("killed").heard
    second = [value["metadata"]["uid"] for _, resource, _, value in heard if resource == "pods"][-1]
    state = state_of(recording("killed"), retries=1)
    assert state.why_open("client-000") == "it has no pod yet"
    state.hear([news for news in heard if news[3]["metadata"]["uid"] != second])
    assert state.why_open("client-000") == "its last pod failed: killed by signal 9: trains"
