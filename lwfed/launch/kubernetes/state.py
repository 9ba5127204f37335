"""Derives what a Job's pods mean for its clients: takes lists, returns facts. No IO and no clock of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from lwfed.launch.kubernetes import reasons
from lwfed.launch.kubernetes.manifests import CONTAINER, GRACE_S
from lwfed.launch.kubernetes.names import INDEX_LABEL
from lwfed.launch.kubernetes.reasons import Failure, Values, Wait
from lwfed.run.events import ClientStarted, ClientWaiting
from lwfed.run.launcher import Outcome
from lwfed.spec.kubernetes import KubernetesSpec
from lwfed.types.errors import FINAL_CODES

BROKEN_S = 60.0
"""Seconds after which an image that cannot be pulled, or a container that cannot be created, is given up."""
SETTLE_S = 2.0
"""Seconds that a pod may wait before that is reported, and that the last line of a failed pod may arrive late."""
LOST_NODE_S = GRACE_S + 60.0
"""Seconds after which a deleted pod that is still there is given up together with its node."""
SUSPENDED = "its Job is suspended until a queue admits it"


Fact = ClientStarted | ClientWaiting | Outcome
"""What follows for the clients of a Job: an event, or how a client's task has ended."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobHandle:
    """A Job that works on tasks of a call.

    Attributes:
        name: Its name.
        uid: Its UID; a later Job of the same name has another.
        clients: Its clients by index, including any that the call does not ask for.
        adopted: Whether another coordinator created it.
    """

    name: str
    uid: str
    clients: tuple[str, ...]
    adopted: bool


@dataclass(slots=True)
class _Pod:
    client: str
    value: Values
    seen_at: float
    started: bool = False
    over: bool = False
    waits: Wait | None = None
    waits_since: float = 0.0
    reported: tuple[str, str] | None = None
    deleted_at: float | None = None
    events: Sequence[Values] = ()

    @property
    def name(self) -> str:
        return str(self.value["metadata"]["name"])


@dataclass(slots=True, kw_only=True)
class JobState:
    """The state of one Job.

    Attributes:
        handle: The Job.
        step: The step that its pods run.
        open: The clients whose tasks have not ended.
        settings: How often the cluster restarts a client, and how long a pod that does not start is waited for.
        explain: Returns why a pod failed.
        value: The Job as last seen.
        lost: Why the Job has ended before its clients; None: it has not.
        failures: Why the last pod of a client failed.
    """

    handle: JobHandle
    step: str
    open: set[str]
    settings: KubernetesSpec
    explain: Callable[[Values], Failure]
    value: Values = field(default_factory=dict)
    lost: str | None = None
    failures: dict[str, Failure] = field(default_factory=dict)
    _events: Sequence[Values] = ()
    _pods: dict[str, _Pod] = field(default_factory=dict)
    _failed_at: dict[str, float] = field(default_factory=dict)
    _stuck: str | None = None
    _refused: str | None = None
    _refused_since: float = 0.0
    _ended_badly: bool = False
    _queue_reported: bool = False

    def look(self, job: Values | None, pods: Iterable[Values], *, now: float, busy: bool) -> list[Fact]:
        """Returns the facts that follow from lists of the cluster and from the time that has passed; may set `lost`.

        Args:
            job: The Job; None if it is gone.
            pods: Pods, listed no earlier than the Job; those of other Jobs are ignored.
            now: Seconds of a clock.
            busy: Whether a pod of the same call is running, so that resources will become free.
        """
        if job is None:
            self.lost = self.lost or "the Job was deleted"
        if job is None or self.lost is not None:
            return []
        self.value = job
        facts = [*self._look_at_job(now), *self._look_at_pods(pods, now)]
        end = reasons.job_end(job)
        if end is not None and end[0] == "Failed" and self.open:
            self.lost = end[1]
            return facts
        facts += [*self._end_failed(now), *self._report_refusal(now), *self._report_waits(now)]
        self.lost = self._on_lost_node(now)
        return facts if self.lost is not None else facts + self._give_up(now, busy=busy)

    def unexplained(self, *, now: float, after_s: float) -> list[str]:
        """Returns UIDs of objects whose events may say why pods do not start: the Job if it lacks pods, and pods."""
        slow = [
            str(pod.value["metadata"]["uid"])
            for pod in self._waiting()
            if now - pod.seen_at > after_s
            and pod.value["spec"].get("nodeName")
            and (pod.waits is None or pod.waits.kind in reasons.FROM_EVENTS)
        ]
        return [self.handle.uid, *slow] if self._lacks_pods() else slow

    def on_events(self, uid: str, events: Sequence[Values]) -> None:
        """Keeps the events of the Job or of a pod, oldest first, for the next look."""
        if uid == self.handle.uid:
            self._events = events
        elif uid in self._pods:
            self._pods[uid].events = events

    @property
    def succeeded(self) -> bool:
        """Whether all its clients have succeeded, so that the Job ends by itself."""
        return self.lost is None and not self.open and not self._ended_badly

    @property
    def is_over(self) -> bool:
        """Whether the Job has ended."""
        return self.lost is not None or reasons.job_end(self.value) is not None

    @property
    def has_live_pods(self) -> bool:
        """Whether any of its pods has not ended."""
        return bool(self._live_pods())

    def without_pod(self) -> list[str]:
        """Returns the open clients without a pod."""
        have = {pod.client for pod in self._live_pods().values()}
        return sorted(self.open - have - set(self._failed_at))

    def why_open(self, client: str) -> str:
        """Returns why a client is not done; empty if unknown."""
        pods = [pod for pod in self._live_pods().values() if pod.client == client]
        if pods and pods[-1].waits is not None:
            return pods[-1].waits.line
        if not pods and reasons.is_suspended(self.value):
            return SUSPENDED
        if not pods and self._refused is not None:
            return f"its pod is not created: {self._refused}"
        if not pods and client in self.failures:
            return f"its last pod failed: {self.failures[client].reason}"
        return "" if pods else "it has no pod yet"

    @property
    def works(self) -> bool:
        """Whether any of its pods runs, and not on a lost node."""
        return any(pod.started and pod.deleted_at is None for pod in self._live_pods().values())

    def _lacks_pods(self) -> bool:
        """Whether the Job has fewer pods than it should have."""
        if not self.value or reasons.is_suspended(self.value):
            return False
        return len(self._live_pods()) < self.value["spec"].get("parallelism", 1) and bool(self.without_pod())

    def _look_at_job(self, now: float) -> list[Fact]:
        status = self.value.get("status") or {}
        facts: list[Fact] = []
        if reasons.is_suspended(self.value) and self.open and not self._queue_reported:
            self._queue_reported = True
            facts += self._notice(sorted(self.open), "waits", SUSPENDED)
        for index in sorted(reasons.indexes(status.get("completedIndexes"))):
            facts += self._end(Outcome(self._client(index)))
        for index in sorted(reasons.indexes(status.get("failedIndexes"))):
            self._failed_at.setdefault(self._client(index), now)
        return facts

    def _look_at_pods(self, pods: Iterable[Values], now: float) -> list[Fact]:
        owned = {pod["metadata"]["uid"]: pod for pod in pods if _is_owned(pod, self.handle.uid)}
        before = self._live_pods()
        facts: list[Fact] = []
        for uid, pod in before.items():
            if uid not in owned:
                del self._pods[uid]
                facts += self._notice([pod.client], f"its pod {pod.name} was deleted; the Job creates another")
        for uid, value in owned.items():
            index = int((value["metadata"].get("labels") or {}).get(INDEX_LABEL, "0"))
            pod = self._pods.setdefault(uid, _Pod(self._client(index), value, seen_at=now))
            pod.value = value
            facts += self._look_at_pod(pod, now)
        if self._live_pods().keys() != before.keys():
            self._refused, self._events = None, ()  # one came or went: nothing may forbid the next
        return facts

    def _end_failed(self, now: float) -> list[Fact]:
        """Ends the clients that the Job does not restart."""
        facts: list[Fact] = []
        for client, since in sorted(self._failed_at.items()):
            if client in self.failures or now - since > SETTLE_S:
                found = self.failures.get(client, Failure(1, "its pods failed without a message"))
                facts += self._end(Outcome(client, found.exit_code, found.reason))
        return facts

    def _look_at_pod(self, pod: _Pod, now: float) -> list[Fact]:
        phase, was_over = pod.value["status"].get("phase"), pod.over
        pod.over = phase in ("Succeeded", "Failed")
        facts: list[Fact] = []
        if not pod.started and reasons.is_running(pod.value, container=CONTAINER):
            pod.started, pod.waits = True, None
            if pod.client in self.open:
                node = pod.value["spec"].get("nodeName", "")
                facts.append(ClientStarted(client=pod.client, step=self.step, pod=pod.name, node=node))
        if phase == "Succeeded":
            return facts + self._end(Outcome(pod.client))
        if phase == "Failed":
            return facts if was_over else facts + self._fail(pod)
        found = None if pod.started else reasons.waiting(pod.value, container=CONTAINER, events=pod.events)
        if found is None or pod.waits is None or found.kind != pod.waits.kind:
            pod.waits_since = now
        elif found.kind == "image" and len(found.line) < len(pod.waits.line):
            return facts  # pulling and backing off alternate: the longer line has the reason
        pod.waits = found
        return facts

    def _report_refusal(self, now: float) -> list[Fact]:
        """Reports once why the cluster creates no pods."""
        why, clients = reasons.refused(self._events), self.without_pod()
        if why is None or why == self._refused or not clients:
            return []
        if self._refused is None:
            self._refused_since = now
        self._refused = why
        return self._notice(clients, "its pod is not created", why)

    def _give_up(self, now: float, *, busy: bool) -> list[Fact]:
        """Ends the clients that have waited for too long."""
        facts: list[Fact] = []
        longest_s = self.settings.pending_timeout_s
        for pod in self._waiting():
            wait = pod.waits or Wait("starting", "its pod does not start, for an unknown reason")
            if wait.kind == "scheduling" and busy:
                pod.seen_at = now  # it waits for resources that other clients use
                continue
            limit, since = longest_s, pod.seen_at
            if wait.kind in ("image", "config") and limit > BROKEN_S:
                limit, since = BROKEN_S, pod.waits_since
            if now - since >= limit:
                why = f"given up after {limit:g} s: {wait.line} -> {reasons.REMEDIES[wait.kind]}"
                self._stuck = self._stuck or why
                facts += self._end(Outcome(pod.client, 1, why))
        if self._live():
            return facts
        if self._refused is not None and now - self._refused_since >= longest_s:
            why = f"given up after {longest_s:g} s: its pod is not created: {self._refused}"
            self._stuck = self._stuck or f"{why} -> {reasons.REMEDIES['refused']}"
        if self._stuck is not None:  # nothing runs whose end would free resources for the others
            for client in self.without_pod():
                facts += self._end(Outcome(client, 1, self._stuck))
        return facts

    def _on_lost_node(self, now: float) -> str | None:
        """Returns which deleted pod stays because its node does not answer; its Job would not replace it. Else None."""
        for pod in self._live_pods().values():
            if pod.client not in self.open or pod.value["metadata"].get("deletionTimestamp") is None:
                continue
            pod.deleted_at = now if pod.deleted_at is None else pod.deleted_at
            if now - pod.deleted_at > LOST_NODE_S:
                node = pod.value["spec"].get("nodeName", "?")
                return f"the pod of {pod.client} stays on the node {node}, which does not answer"
        return None

    def _client(self, index: int) -> str:
        return self.handle.clients[index] if index < len(self.handle.clients) else ""

    def _live_pods(self) -> dict[str, _Pod]:
        return {uid: pod for uid, pod in self._pods.items() if not pod.over}

    def _live(self) -> bool:
        """Whether a pod of an open client runs or waits to start."""
        return any(pod.client in self.open for pod in self._live_pods().values())

    def _waiting(self) -> list[_Pod]:
        return [pod for pod in self._live_pods().values() if pod.client in self.open and not pod.started]

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
        return [fact for (_, line), clients in news.items() for fact in self._notice(sorted(clients), "waits", line)]

    def _fail(self, pod: _Pod) -> list[Fact]:
        found = self.explain(pod.value)
        self.failures[pod.client] = found
        # the cluster alone cannot tell a final code: torchrun may hide it
        if found.exit_code in FINAL_CODES or pod.client in self._failed_at:
            return self._end(Outcome(pod.client, found.exit_code, found.reason))
        tries = sum(other.client == pod.client and other.over for other in self._pods.values())
        if found.retried or tries <= self.settings.retries:
            return self._notice([pod.client], f"{found.reason}; the Job restarts it")
        return []

    def _end(self, outcome: Outcome) -> list[Fact]:
        if outcome.client not in self.open:
            return []
        self.open.discard(outcome.client)
        self._ended_badly = self._ended_badly or bool(outcome.exit_code)
        self._failed_at.pop(outcome.client, None)
        return [outcome]

    def _notice(self, clients: Sequence[str], what: str, why: str = "") -> list[Fact]:
        """Reports something about the first of some clients, with the number of the others."""
        first, *others = clients
        if first not in self.open:
            return []
        more = f" (and {len(others)} other{'s' * (len(others) > 1)})" if others else ""
        return [ClientWaiting(client=first, line=f"{what}{more}: {why}" if why else what)]


def _is_owned(pod: Values, uid: str) -> bool:
    return any(owner["uid"] == uid for owner in pod["metadata"].get("ownerReferences") or ())
