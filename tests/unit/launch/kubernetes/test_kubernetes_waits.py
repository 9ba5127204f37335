"""Laws of waiting: who waits for what others use is not given up, and who sits on a lost node is."""

from __future__ import annotations

from typing import Any

from lwfed.launch.kubernetes.reasons import Failure
from lwfed.launch.kubernetes.state import LOST_NODE_S, JobState, Lost
from lwfed.run.launcher import Outcome

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


def state(*, busy: bool) -> JobState:
    return JobState(
        step="train-client", uid="job", clients=("client-000",), open={"client-000"}, retries=0,
        pending_timeout_s=LIMIT_S, explain=lambda _: Failure(1, "why"), busy=lambda: busy,
    )  # fmt: skip


def test_nobody_is_given_up_while_others_use_what_it_waits_for() -> None:
    for busy, given_up in ((True, False), (False, True)):
        job = state(busy=busy)
        facts = [fact for second in range(40) for fact in job.look(JOB, [pod(UNSCHEDULABLE)], now=float(second))]
        assert any(isinstance(fact, Outcome) for fact in facts) is given_up


def test_a_pod_that_is_to_go_and_stays_is_lost_with_its_node() -> None:
    job = state(busy=False)
    job.look(JOB, [pod(RUNNING)], now=0.0)
    assert job.works
    leaving = pod(RUNNING, deletionTimestamp="2026-01-01T00:00:00Z")
    assert not job.look(JOB, [leaving], now=2.0) and not job.works
    (lost,) = job.look(JOB, [leaving], now=2.5 + LOST_NODE_S)
    assert isinstance(lost, Lost) and "the node n1, which does not answer" in lost.reason
