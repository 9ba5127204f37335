"""Laws of waiting: who waits for what others use is not given up, and who sits on a lost node is."""

from __future__ import annotations

from typing import Any

from lwfed.launch.kubernetes.reasons import Failure
from lwfed.launch.kubernetes.state import LOST_NODE_S, JobHandle, JobState
from lwfed.run.launcher import Outcome
from lwfed.spec.kubernetes import KubernetesSpec

LIMIT_S = 10.0
JOB: dict[str, Any] = {"metadata": {"uid": "job"}, "spec": {}}
UNSCHEDULABLE = {
    "phase": "Pending",
    "conditions": [
        {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "Insufficient nvidia.com/gpu"}
    ],
}
RUNNING = {"phase": "Running", "containerStatuses": [{"name": "lwfed", "state": {"running": {}}}]}


def pod(status: dict[str, Any], **metadata: Any) -> dict[str, Any]:
    owners = [{"uid": "job"}]
    return {
        "metadata": {"name": "p", "uid": "pod", "ownerReferences": owners, **metadata},
        "spec": {"nodeName": "n1"},
        "status": status,
    }


def state() -> JobState:
    return JobState(
        handle=JobHandle(name="j", uid="job", clients=("client-000",), adopted=False), step="train-client",
        open={"client-000"}, settings=KubernetesSpec(retries=0, pending_timeout_s=LIMIT_S),
        explain=lambda _: Failure(1, "why"),
    )  # fmt: skip


def test_nobody_is_given_up_while_others_use_what_it_waits_for() -> None:
    for busy, given_up in ((True, False), (False, True)):
        job, waiting = state(), [pod(UNSCHEDULABLE)]
        facts = [fact for second in range(40) for fact in job.look(JOB, waiting, now=float(second), busy=busy)]
        assert any(isinstance(fact, Outcome) for fact in facts) is given_up


def test_a_pod_that_is_to_go_and_stays_is_lost_with_its_node() -> None:
    job = state()
    job.look(JOB, [pod(RUNNING)], now=0.0, busy=True)
    assert job.works
    leaving = pod(RUNNING, deletionTimestamp="2026-01-01T00:00:00Z")
    assert not job.look(JOB, [leaving], now=2.0, busy=True) and not job.works and job.lost is None
    assert not job.look(JOB, [leaving], now=2.5 + LOST_NODE_S, busy=True)
    assert job.lost is not None and "the node n1, which does not answer" in job.lost
