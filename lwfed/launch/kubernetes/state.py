"""Derives what a Job's pods mean for its clients: takes changes, returns facts. No IO and no clock of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lwfed.launch.kubernetes import reasons
from lwfed.launch.kubernetes.manifests import CONTAINER, GRACE_S
from lwfed.launch.kubernetes.names import INDEX_LABEL
from lwfed.launch.kubernetes.reasons import Failure, Wait
from lwfed.run.launcher import Outcome
from lwfed.types.errors import FINAL_CODES

BROKEN_S = 60.0
"""Seconds after which an image that cannot be pulled, or a container that cannot be created, is given up."""
SETTLE_S = 2.0
"""Seconds that a pod may wait before that is reported, and that the last line of a failed pod may arrive late."""
LOST_NODE_S = GRACE_S + 60.0
"""Seconds after which a deleted pod that is still there is given up together with its node."""
SUSPENDED = "its Job is suspended until a queue admits it"


@dataclass(frozen=True, slots=True)
class Started:
    """A client's container has been started."""

    client: str
    pod: str
    node: str


@dataclass(frozen=True, slots=True)
class Notice:
    """A line to report about a client."""

    client: str
    line: str


@dataclass(frozen=True, slots=True)
class Ended:
    """A client's task has ended in this Job."""

    outcome: Outcome


@dataclass(frozen=True, slots=True)
class Lost:
    """The Job has ended before its clients."""

    reason: str


Fact = Started | Notice | Ended | Lost


@dataclass(slots=True)
class _Pod:
    client: str
    value: Mapping[str, Any]
    seen_at: float
    started: bool = False
    waits: Wait | None = None
    waits_since: float = 0.0
    reported: tuple[str, str] | None = None
    deleted_at: float | None = None
    events: Sequence[Mapping[str, Any]] = ()

    @property
    def over(self) -> bool:
        return self.value["status"].get("phase") in ("Succeeded", "Failed")


@dataclass(slots=True, kw_only=True)
class JobState:
    """The state of one Job.

    Attributes:
        name: Its name.
        uid: Its UID; a later Job of the same name has another.
        clients: Its clients by index, including any that the call does not ask for.
        open: The clients whose tasks have not ended.
        retries: How often the cluster restarts a client.
        pending_timeout_s: Seconds after which a pod that does not start is given up.
        explain: Returns why a pod failed.
        busy: Whether a pod of the same call is running, so that resources will become free.
    """

    name: str
    uid: str
    clients: tuple[str, ...]
    open: set[str]
    retries: int
    pending_timeout_s: float
    explain: Callable[[Mapping[str, Any]], Failure]
    busy: Callable[[], bool] = lambda: False
    value: Mapping[str, Any] = field(default_factory=dict)
    lost: bool = False
    _pods: dict[str, _Pod] = field(default_factory=dict)
    _failures: dict[str, Failure] = field(default_factory=dict)
    _failed_at: dict[str, float] = field(default_factory=dict)
    _stuck: dict[str, str] = field(default_factory=dict)
    _refused: str | None = None
    _refused_since: float = 0.0
    _ended_badly: bool = False
    _queue_reported: bool = False

    def on_job(self, kind: str, value: Mapping[str, Any], *, now: float) -> list[Fact]:
        """Handles a change of the Job; `kind` is ADDED, MODIFIED or DELETED."""
        if value["metadata"]["uid"] != self.uid or self.lost:
            return []
        if kind == "DELETED":
            return self._lose("the Job was deleted")
        self.value = value
        status = value.get("status") or {}
        facts: list[Fact] = []
        if reasons.is_suspended(value) and self.open and not self._queue_reported:
            self._queue_reported = True
            first, *others = sorted(self.open)
            facts += self._notice(first, f"waits{_and_others(others)}: {SUSPENDED}")
        for index in sorted(reasons.indexes(status.get("completedIndexes"))):
            facts += self._end(self._client(index), Outcome(self._client(index)))
        for index in sorted(reasons.indexes(status.get("failedIndexes"))):
            self._failed_at.setdefault(self._client(index), now)
        end = reasons.job_end(value)
        if end is not None and end[0] == "Failed" and not reasons.ended_by_indexes(value) and self.open:
            return facts + self._lose(end[1])
        return facts + self.on_time(now=now)

    def on_pod(self, kind: str, value: Mapping[str, Any], *, now: float) -> list[Fact]:
        """Handles a change of a pod; ignores pods of other Jobs."""
        owners = value["metadata"].get("ownerReferences") or ()
        if self.lost or not any(owner["uid"] == self.uid for owner in owners):
            return []
        index = int((value["metadata"].get("labels") or {}).get(INDEX_LABEL, "0"))
        uid = value["metadata"]["uid"]
        known = self._pods.get(uid)
        pod = known or _Pod(self._client(index), value, seen_at=now)
        was_over = known is not None and known.over
        pod.value = value
        self._refused = None  # one was created, so nothing forbids the next
        if kind == "DELETED" and not pod.over:
            self._pods.pop(uid, None)
            return self._notice(pod.client, f"its pod {value['metadata']['name']} was deleted; the Job creates another")
        self._pods[uid] = pod
        facts: list[Fact] = []
        if not pod.started and reasons.is_running(value, container=CONTAINER):
            pod.started, pod.waits = True, None
            if pod.client in self.open:
                spec = value["spec"]
                facts.append(Started(pod.client, value["metadata"]["name"], spec.get("nodeName", "")))
        if value["status"].get("phase") == "Succeeded":
            return facts + self._end(pod.client, Outcome(pod.client))
        if value["status"].get("phase") == "Failed" and not was_over:
            return facts + self._fail(pod, now=now)
        self._look(pod, now=now)
        return facts

    def on_pod_events(self, uid: str, events: Sequence[Mapping[str, Any]], *, now: float) -> None:
        """Handles the events of a pod that does not start, oldest first."""
        pod = self._pods.get(uid)
        if pod is not None:
            pod.events = events
            self._look(pod, now=now)

    def on_job_events(self, events: Sequence[Mapping[str, Any]], *, now: float) -> list[Fact]:
        """Handles the events of the Job, oldest first."""
        why = reasons.refused(events)
        if why is None or not self.without_pod():
            return []
        if self._refused is None:
            self._refused_since = now
        if why == self._refused:
            return []
        self._refused = why
        first, *others = self.without_pod()
        return self._notice(first, f"its pod is not created{_and_others(others)}: {why}")

    def on_time(self, *, now: float) -> list[Fact]:
        """Returns the facts that follow from the time that has passed."""
        if self.lost:
            return []
        facts: list[Fact] = []
        for client, since in sorted(self._failed_at.items()):
            if client in self._failures or now - since > SETTLE_S:
                found = self._failures.get(client, Failure(1, "its pods failed without a message"))
                facts += self._end(client, Outcome(client, found.exit_code, found.reason))
        facts += self._report_waits(now)
        gone = self._on_lost_node(now)
        if gone is not None:
            return [*facts, *self._lose(gone)]
        for pod in self._waiting():
            if pod.waits is not None and pod.waits.kind == "scheduling" and self.busy():
                pod.seen_at = now  # it waits for resources that other clients use
                continue
            limit = self.pending_timeout_s
            if pod.waits is not None and pod.waits.kind in ("image", "config"):
                limit = min(limit, BROKEN_S)
            since = pod.waits_since if pod.waits is not None and limit < self.pending_timeout_s else pod.seen_at
            if now - since >= limit:
                wait = pod.waits or Wait("starting", "its pod does not start, for an unknown reason")
                self._stuck[pod.client] = f"given up after {limit:g} s: {wait.line} -> {reasons.REMEDIES[wait.kind]}"
                facts += self._end(pod.client, Outcome(pod.client, 1, self._stuck[pod.client]))
        if self._refused is not None and now - self._refused_since >= self.pending_timeout_s and not self._live():
            why = f"given up after {self.pending_timeout_s:g} s: its pod is not created: {self._refused}"
            self._stuck |= dict.fromkeys(self.without_pod(), f"{why} -> {reasons.REMEDIES['refused']}")
        if self._stuck and not self._live():  # nothing runs whose end would free resources for the others
            why = next(iter(self._stuck.values()))
            for client in self.without_pod():
                facts += self._end(client, Outcome(client, 1, why))
        return facts

    @property
    def succeeded(self) -> bool:
        """Whether all its clients have succeeded, so that the Job ends by itself."""
        return not self.lost and not self.open and not self._ended_badly

    @property
    def is_over(self) -> bool:
        """Whether the Job has ended."""
        return self.lost or reasons.job_end(self.value) is not None

    @property
    def has_live_pods(self) -> bool:
        """Whether any of its pods has not ended."""
        return any(not pod.over for pod in self._pods.values())

    def without_pod(self) -> list[str]:
        """Returns the open clients without a pod."""
        have = {pod.client for pod in self._pods.values() if not pod.over}
        return sorted(self.open - have - set(self._failed_at))

    def lacks_pods(self) -> bool:
        """Whether the Job has fewer pods than it should have."""
        if not self.value or reasons.is_suspended(self.value):
            return False
        most = self.value["spec"].get("parallelism", 1)
        live = sum(not pod.over for pod in self._pods.values())
        return live < most and bool(self.without_pod())

    def slow_pods(self, *, now: float, after_s: float) -> list[tuple[str, str]]:
        """Returns (uid, name) of pods whose status does not say why they do not start."""
        return [
            (uid, pod.value["metadata"]["name"])
            for uid, pod in self._pods.items()
            if pod.client in self.open
            and now - pod.seen_at > after_s
            and reasons.is_being_made(pod.value, container=CONTAINER)
        ]

    def why_open(self, client: str) -> str:
        """Returns why a client is not done; empty if unknown."""
        pods = [pod for pod in self._pods.values() if pod.client == client and not pod.over]
        if pods and pods[-1].waits is not None:
            return pods[-1].waits.line
        if not pods and reasons.is_suspended(self.value):
            return SUSPENDED
        if not pods and self._refused is not None:
            return f"its pod is not created: {self._refused}"
        if not pods and client in self._failures:
            return f"its last pod failed: {self._failures[client].reason}"
        return "" if pods else "it has no pod yet"

    def failure_of(self, client: str) -> Failure | None:
        """Returns why a client's last pod failed; None if none did."""
        return self._failures.get(client)

    @property
    def works(self) -> bool:
        """Whether any of its pods runs, and not on a lost node."""
        return any(pod.started and not pod.over and pod.deleted_at is None for pod in self._pods.values())

    def _on_lost_node(self, now: float) -> str | None:
        """Returns which deleted pod stays because its node does not answer; its Job would not replace it. Else None."""
        for pod in self._pods.values():
            if pod.over or pod.client not in self.open or pod.value["metadata"].get("deletionTimestamp") is None:
                continue
            pod.deleted_at = now if pod.deleted_at is None else pod.deleted_at
            if now - pod.deleted_at > LOST_NODE_S:
                node = pod.value["spec"].get("nodeName", "?")
                return f"the pod of {pod.client} stays on the node {node}, which does not answer"
        return None

    def _client(self, index: int) -> str:
        return self.clients[index] if index < len(self.clients) else ""

    def _live(self) -> bool:
        """Whether a pod of an open client runs or waits to start."""
        return any(not pod.over and pod.client in self.open for pod in self._pods.values())

    def _waiting(self) -> list[_Pod]:
        return [
            pod for pod in self._pods.values() if pod.client in self.open and not pod.started and not pod.over
        ]  # fmt: skip

    def _look(self, pod: _Pod, *, now: float) -> None:
        found = None if pod.started else reasons.waiting(pod.value, container=CONTAINER, events=pod.events)
        if found is None or pod.waits is None or found.kind != pod.waits.kind:
            pod.waits_since = now
        elif found.kind == "image" and len(found.line) < len(pod.waits.line):
            return  # pulling and backing off alternate: the longer line has the reason
        pod.waits = found

    def _report_waits(self, now: float) -> list[Fact]:
        """Reports each reason to wait once, together for all clients that wait for it."""
        news: dict[tuple[str, str], list[str]] = {}
        for pod in self._waiting():
            if pod.waits is None or now - pod.waits_since < SETTLE_S:
                continue
            mark = (pod.waits.kind, "" if pod.waits.kind == "image" else pod.waits.line)
            if pod.reported != mark:
                pod.reported = mark
                news.setdefault((pod.waits.kind, pod.waits.line), []).append(pod.client)
        facts: list[Fact] = []
        for (_, line), clients in news.items():
            first, *others = sorted(clients)
            facts += self._notice(first, f"waits{_and_others(others)}: {line}")
        return facts

    def _fail(self, pod: _Pod, *, now: float) -> list[Fact]:
        found = self.explain(pod.value)
        self._failures[pod.client] = found
        # the cluster alone cannot tell a final code: torchrun may hide it
        if found.exit_code in FINAL_CODES or pod.client in self._failed_at:
            return self._end(pod.client, Outcome(pod.client, found.exit_code, found.reason))
        tries = sum(other.client == pod.client and other.over for other in self._pods.values())
        if found.retried or tries <= self.retries:
            return self._notice(pod.client, f"{found.reason}; the Job restarts it")
        return []

    def _end(self, client: str, outcome: Outcome) -> list[Fact]:
        if client not in self.open:
            return []
        self.open.discard(client)
        self._ended_badly = self._ended_badly or bool(outcome.exit_code)
        self._failed_at.pop(client, None)
        return [Ended(outcome)]

    def _lose(self, reason: str) -> list[Fact]:
        self.lost = True
        return [Lost(reason)]

    def _notice(self, client: str, line: str) -> list[Fact]:
        return [Notice(client, line)] if client in self.open else []


def _and_others(others: Sequence[str]) -> str:
    return f" (and {len(others)} other{'s' * (len(others) > 1)})" if others else ""
