"""What a real cluster told of pods in trouble is said in one line, with its own words in it."""

from __future__ import annotations

import json
from typing import Any, get_args, get_type_hints

import pytest

from lwfed.launch.kubernetes import reasons
from lwfed.launch.kubernetes.manifests import CONTAINER
from lwfed.launch.kubernetes.reasons import (
    FROM_EVENTS,
    MAX_LINE,
    Failure,
    failure,
    indexes,
    is_running,
    is_suspended,
    job_end,
    log_event,
    one_line,
    refused,
    text_lines,
    waiting,
)
from lwfed.types.errors import OutOfMemoryError
from tests.unit.launch.recordings import names, recording


def failed(name: str, index: int = 0, *, attempt: int = 0, **values: Any) -> Failure:
    """Says why a pod of a recording failed."""
    last: dict[str, dict[str, Any]] = {}
    for pod in recording(name).pods(index):
        if pod["status"]["phase"] == "Failed":
            last[pod["metadata"]["uid"]] = pod
    return failure(list(last.values())[attempt], container=CONTAINER, **{"memory_limit": "64Mi", "pool": "p"} | values)


def test_out_of_memory_names_the_limit_the_prediction_and_the_pool() -> None:
    found = failed("out-of-memory", predicted="the ledger predicts 70Mi of tensors")
    assert found.exit_code == OutOfMemoryError.exit_code and not found.retried
    assert found.reason == (
        "out of memory: killed at its limit of 64Mi; the ledger predicts 70Mi of tensors"
        " -> raise the memory of the pool `p`, or lower training.batch_size"
    )
    assert "killed at the node's memory ->" in failed("out-of-memory", memory_limit=None).reason


@pytest.mark.parametrize(
    ("name", "index", "expected"),
    [
        ("killed", 0, Failure(137, "killed by signal 9: trains")),
        ("final-codes", 0, Failure(10, "the spec's clients are wrong -> mend it")),
        ("final-codes", 1, Failure(11, "bad data: no column age -> name one that is there")),
        ("final-codes", 2, Failure(14, "training diverged: the loss is nan -> lower training.learning_rate")),
        ("fails-twice", 0, Failure(1, "unexpected error: KeyError: 7")),
        ("coordinator-gone", 0, Failure(20, "coordinator gone: no sign of life for 120 s")),
        ("under-torchrun", 0, Failure(18, "out of GPU memory -> lower training.batch_size")),
        ("deleted-pod", 0, Failure(143, "killed by signal 15: no message")),
    ],
)
def test_an_exit_code_is_named_and_its_words_are_the_programs(name: str, index: int, expected: Failure) -> None:
    assert failed(name, index) == expected


def test_a_pod_that_is_taken_away_is_started_again_whatever_its_exit_code() -> None:
    found = failed("evicted")
    assert found.retried and found.exit_code == 1
    assert found.reason.startswith("its pod was evicted: EvictionByEvictionAPI: ")


def test_a_disruption_that_did_not_come_is_none() -> None:
    (pod,) = [pod for pod in recording("deleted-pod").pods() if pod["status"]["phase"] == "Failed"][-1:]
    pod["status"]["conditions"].append({"type": "DisruptionTarget", "status": "False", "reason": "Preempted"})
    assert failure(pod, container=CONTAINER, memory_limit=None).exit_code == 143


def test_a_program_that_is_not_in_the_image_is_named() -> None:
    found = failed("no-program")
    assert found.exit_code == 128 and found.reason.startswith("its container could not start: ")
    assert 'exec: "lwfed": executable file not found' in found.reason


def test_a_pod_without_a_container_has_its_own_words() -> None:
    pod = {"status": {"phase": "Failed", "reason": "Evicted", "message": "The node was low on resource: memory."}}
    found = failure(pod, container=CONTAINER, memory_limit=None)
    assert found == Failure(1, "its pod failed: Evicted: The node was low on resource: memory.")
    silent = failure({"status": {"phase": "Failed"}}, container=CONTAINER, memory_limit=None)
    assert silent.reason == "its pod failed: no message"


def test_a_failed_pod_never_has_exit_code_0() -> None:
    """A sidecar may fail a pod whose own container ended well."""
    state = {"terminated": {"exitCode": 0, "reason": "Completed"}}
    pod = {"status": {"phase": "Failed", "containerStatuses": [{"name": CONTAINER, "state": state}]}}
    assert failure(pod, container=CONTAINER, memory_limit=None).exit_code == 1


def kinds(name: str, index: int = 0, *, events: bool = True) -> list[str]:
    """Gives the kinds of waits of an index's pods, one after another."""
    recorded, found = recording(name), []
    for pod in recorded.pods(index):
        told = recorded.events_of(pod["metadata"]["uid"]) if events else ()
        wait = waiting(pod, container=CONTAINER, events=told)
        if wait is not None and wait.kind not in found[-1:]:
            found.append(wait.kind)
    return found


@pytest.mark.parametrize(
    ("name", "kind", "words"),
    [
        ("fits-nowhere", "scheduling", "no node fits its pod: Unschedulable: 0/1 nodes are available: 1 Insufficient"),
        ("no-image", "image", 'docker.io/lab/absent:1"'),
        (
            "no-secret",
            "config",
            'its container cannot be created: CreateContainerConfigError: secret "absent" not found',
        ),
        ("no-volume", "starting", 'FailedMount: MountVolume.SetUp failed for volume "data" : configmap "absent" not'),
    ],
)
def test_a_wait_has_its_kind_and_the_clusters_words(name: str, kind: str, words: str) -> None:
    recorded = recording(name)
    pod = recorded.pods()[-1]
    wait = waiting(pod, container=CONTAINER, events=recorded.events_of(pod["metadata"]["uid"]))
    assert wait is not None and wait.kind == kind and words in wait.line
    assert "preemption" not in wait.line, "which says the same again"
    assert kinds(name)[-1] == kind


@pytest.mark.parametrize("name", ["no-image", "no-secret", "fits-nowhere"])
def test_a_state_that_speaks_needs_no_events(name: str) -> None:
    assert kinds(name, events=False) == kinds(name)[-1:]


def test_events_are_read_where_the_state_says_nothing() -> None:
    recorded = recording("no-volume")
    pod = recorded.pods()[-1]
    wait = waiting(pod, container=CONTAINER, events=recorded.events_of(pod["metadata"]["uid"]))
    assert waiting(pod, container=CONTAINER) is None and wait is not None and wait.kind in FROM_EVENTS


def test_a_pull_is_told_while_it_lasts() -> None:
    pod = {"spec": {"nodeName": "n"}, "status": {"phase": "Pending"}}
    pulling = {"reason": "Pulling", "message": 'Pulling image "lwfed:1"'}
    wait = waiting(pod, container=CONTAINER, events=[pulling])
    assert wait is not None and wait.line == 'its node is pulling the image: Pulling image "lwfed:1"'
    pulled = {"reason": "Pulled", "message": "Successfully pulled"}
    assert waiting(pod, container=CONTAINER, events=[pulling, pulled]) is None


@pytest.mark.parametrize("name", names())
def test_who_runs_or_is_over_does_not_wait(name: str) -> None:
    recorded = recording(name)
    for index in range(len(recorded.clients)):
        for pod in recorded.pods(index):
            over = pod["status"]["phase"] != "Pending"
            told = recorded.events_of(pod["metadata"]["uid"])
            if over:
                assert waiting(pod, container=CONTAINER, events=told) is None
                assert is_running(pod, container=CONTAINER)
            elif waiting(pod, container=CONTAINER, events=told) is not None:
                assert not is_running(pod, container=CONTAINER)


@pytest.mark.parametrize(
    ("name", "end"),
    [
        ("succeeds", ("Complete", "")),
        ("final-codes", ("FailedIndexes", "FailedIndexes: Job has failed indexes")),
        ("out-of-memory", ("FailedIndexes", "FailedIndexes: Job has failed indexes")),
        ("too-late", ("Failed", "DeadlineExceeded: Job was active longer than specified deadline")),
        ("killed", None),
        ("evicted", None),
        ("queued", None),
        ("over-quota", None),
    ],
)
def test_a_jobs_end_is_read(name: str, end: tuple[str, str] | None) -> None:
    assert job_end(recording(name).job) == end


def test_a_policy_that_fails_a_job_names_the_pod_and_the_code() -> None:
    end = job_end(recording("coordinator-gone").job)
    assert end is not None and end[0] == "Failed" and "exit code 20 matching FailJob" in end[1]


def test_a_job_is_over_when_its_end_is_decided_though_pods_still_run() -> None:
    jobs = [value for _, resource, _, value in recording("too-late").heard if resource == "jobs"]
    ends = [job_end(job) for job in jobs]
    assert ends[0] is None
    terminating = [job for job in jobs if job_end(job) and job["status"].get("terminating")]
    assert terminating, "the cluster decides first and ends pods then"


def test_a_queue_holds_what_is_suspended() -> None:
    assert is_suspended(recording("queued").job) and not is_suspended(recording("succeeds").job)


def test_a_quota_that_refuses_pods_is_told_in_its_words() -> None:
    recorded = recording("over-quota")
    assert refused(recorded.events_of(recorded.uid)) == (
        "exceeded quota: few, requested: pods=1, used: pods=7, limited: pods=1"
    )
    assert refused(recording("succeeds").events_of(recording("succeeds").uid)) is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [(None, set()), ("", set()), ("3", {3}), ("0,2-4", {0, 2, 3, 4}), ("0-2,10", {0, 1, 2, 10})],
)
def test_index_sets_are_read_as_kubernetes_writes_them(text: str | None, expected: set[int]) -> None:
    assert indexes(text) == expected


def test_events_of_pods_are_told_from_words_for_people() -> None:
    line = json.dumps({"event": "client_step", "values": {"step": 1}})
    assert log_event(line) == ("client_step", {"step": 1})
    for text in (
        "",
        "reads",
        "{",
        "[1]",
        "{}",
        '{"event": 1, "values": {}}',
        '{"event": "e", "values": 1}',
        '{"a": 1}',
    ):
        assert log_event(text) is None
    assert text_lines(f"  a  \n\n{line}\nb\n") == ["  a", "b"]


def test_the_last_words_count_and_an_error_of_ours_most() -> None:
    state = {"exitCode": 11, "reason": "Error", "message": "error: first\nerror: the last -> do\nTraceback\n  x\n"}
    pod = {"status": {"phase": "Failed", "containerStatuses": [{"name": CONTAINER, "state": {"terminated": state}}]}}
    assert failure(pod, container=CONTAINER, memory_limit=None) == Failure(11, "bad data: the last -> do")
    other = [{"name": "sidecar", "state": {"terminated": {"exitCode": 3}}}, *pod["status"]["containerStatuses"]]
    pod["status"]["containerStatuses"] = other
    assert failure(pod, container=CONTAINER, memory_limit=None).exit_code == 11, "our container's, not another's"


def test_a_line_is_one_and_not_too_long() -> None:
    assert one_line(" a\n\tb  c ") == "a b c"
    assert one_line("x" * MAX_LINE) == "x" * MAX_LINE
    assert one_line("x" * (MAX_LINE + 1)) == "x" * (MAX_LINE - 3) + "..."


def test_every_wait_that_is_given_up_says_what_helps() -> None:
    kinds = get_args(get_type_hints(reasons.Wait)["kind"])
    assert set(reasons.REMEDIES) == {*kinds, "refused"}
