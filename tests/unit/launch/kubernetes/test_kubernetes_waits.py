"""Laws of waiting: who waits for what others use is not given up, and who sits on a lost node is."""

from __future__ import annotations

from typing import Any

from lwfed.launch.kubernetes.reasons import Failure
from lwfed.launch.kubernetes.state import LOST_NODE_S, Ended, JobState, Lost

LIMIT_S = 10.0
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


def state(*, busy: bool) -> JobState:
    return JobState(
        name="j", uid="job", clients=("client-000",), open={"client-000"}, retries=0, pending_timeout_s=LIMIT_S,
        explain=lambda _: Failure(1, "why"), busy=lambda: busy,
    )  # fmt: skip


def test_nobody_is_given_up_while_others_use_what_it_waits_for() -> None:
    for busy, given_up in ((True, False), (False, True)):
        job = state(busy=busy)
        job.on_pod("ADDED", pod(UNSCHEDULABLE), now=0.0)
        facts = [fact for second in range(1, 40) for fact in job.on_time(now=float(second))]
        assert any(isinstance(fact, Ended) for fact in facts) is given_up


def test_a_pod_that_is_to_go_and_stays_is_lost_with_its_node() -> None:
    job = state(busy=False)
    job.on_pod("ADDED", pod(RUNNING), now=0.0)
    assert job.works
    job.on_pod("MODIFIED", pod(RUNNING, deletionTimestamp="2026-01-01T00:00:00Z"), now=1.0)
    assert not [fact for fact in job.on_time(now=2.0) if isinstance(fact, Lost)] and not job.works
    (lost,) = job.on_time(now=2.5 + LOST_NODE_S)
    assert isinstance(lost, Lost) and "the node n1, which does not answer" in lost.reason
