"""Collects the outcomes of one call's tasks from its Jobs; replaces Jobs that are lost.

`poll` and `logs` report what the Jobs' pods do, `state` derives what that means for a Job, and this module acts on it.
"""

from __future__ import annotations

import queue
import time
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

from pydantic import ValidationError

from lwfed.launch.kubernetes import reasons
from lwfed.launch.kubernetes.api import Cluster
from lwfed.launch.kubernetes.jobs import Call, JobHandle, Jobs
from lwfed.launch.kubernetes.logs import Denied, Line, Lines, Logs
from lwfed.launch.kubernetes.manifests import CONTAINER, memory_limit
from lwfed.launch.kubernetes.names import SERVER
from lwfed.launch.kubernetes.poll import Change, Poll
from lwfed.launch.kubernetes.state import Ended, Fact, JobState, Lost, Notice, Started
from lwfed.run.events import ClientLog, ClientStarted, ClientWaiting, Emit, Warning, read_event
from lwfed.run.launcher import Outcome
from lwfed.run.tasks import PoolTask, ServerTask
from lwfed.spec.kubernetes import KubernetesSpec, PoolSpec
from lwfed.types.errors import LwfedError

LOOK_S = 5.0
"""Seconds before the events of a pod that does not start are read, and between two such reads."""
LOOKS = 4
"""The most pods of a Job whose events are read at a time."""
DRAIN_S = 2.0
"""The longest wait for the last lines of pods, and for the end of Jobs whose clients failed."""
TAIL = 20
"""Lines to show of a failed pod's log if it was not followed."""
PASSED_ON = frozenset({"client_step", "checking", "warning"})
"""Events of pods that are passed on to the run's events; all others are reserved for the coordinator."""


class Collector:
    """The Jobs of one call and their state.

    Args:
        call: The call.
        work: The tasks of each pool; one Job per pool.
        jobs: Creates and deletes Jobs.
        cluster: The cluster of the Jobs.
        settings: How long to wait for Jobs, and how often to replace them.
        emit: Receives what pods and Jobs do, as events.
        predicted: The ledger's prediction of a client's memory, for clients that run out of it; empty if unknown.
    """

    def __init__(
        self,
        call: Call,
        work: Sequence[tuple[PoolSpec, Sequence[PoolTask | ServerTask]]],
        *,
        jobs: Jobs,
        cluster: Cluster,
        settings: KubernetesSpec,
        emit: Emit,
        predicted: str,
    ) -> None:
        self._call, self._jobs, self._cluster, self._settings = call, jobs, cluster, settings
        self._emit, self._predicted = emit, predicted
        self._work = {pool.name: (pool, tasks) for pool, tasks in work}
        self._states: dict[str, JobState] = {}
        self._handles: dict[str, tuple[str, JobHandle]] = {}
        self._made: dict[str, int] = dict.fromkeys(self._work, 0)
        self._clients: dict[str, str] = {}
        self._lines: Lines = queue.SimpleQueue()
        self._logs = Logs(cluster, lines=self._lines)
        self._poll = Poll(cluster, selector=call.selector, warn=self._warn)
        self._looked_at = time.monotonic()

    def outcomes(self) -> Generator[Outcome]:
        """Yields one outcome per task as tasks end; see `Launcher.clients` for the errors.

        If the consumer stops early, the Jobs stay: a coordinator that was ended has a successor.
        """
        ends_at = time.monotonic() + (self._call.deadline_s or float("inf"))
        try:
            for name, (_, tasks) in self._work.items():
                self._begin(name, tasks)
            while self._open() and time.monotonic() < ends_at:
                yield from self._next(ends_at)
            yield from self._late()
            self._drain()
            self._clean_up()
        except LwfedError:
            self.end()
            raise
        finally:
            self._logs.close()

    def end(self) -> None:
        """Deletes all the call's Jobs."""
        for _, handle in self._handles.values():
            self._jobs.end(handle)

    def _busy(self) -> bool:
        return any(state.works for state in self._states.values())

    def _open(self) -> bool:
        return any(state.open for state in self._states.values())

    def _begin(self, name: str, tasks: Sequence[PoolTask | ServerTask]) -> None:
        pool = self._work[name][0]
        handle = self._jobs.begin(self._call, pool, tasks)
        self._made[name] += 1
        if handle.adopted:
            self._warn(f"takes over the Job {handle.name}, which another coordinator created")
        self._handles[handle.uid] = (name, handle)
        self._states[handle.uid] = JobState(
            name=handle.name,
            uid=handle.uid,
            clients=handle.clients,
            open={_client_of(task) for task in tasks},
            retries=self._settings.retries,
            pending_timeout_s=self._settings.pending_timeout_s,
            explain=partial(self._explain, pool),
            busy=self._busy,
        )

    def _next(self, ends_at: float) -> Iterator[Outcome]:
        """Shows log lines until the next poll is due; then handles changes and timeouts."""
        self._show_lines(min(self._poll.due_in_s, max(0.0, ends_at - time.monotonic())))
        for change in self._poll.look():
            yield from self._settle(self._facts(change))
        now = time.monotonic()
        if now - self._looked_at >= LOOK_S:  # before anything is given up, so that the reason is known
            self._looked_at = now
            yield from self._settle(self._look(now))
        for uid, state in list(self._states.items()):
            yield from self._settle((uid, fact) for fact in state.on_time(now=now))

    def _facts(self, change: Change) -> list[tuple[str, Fact]]:
        """Returns the facts that follow from a change, each with the UID of its Job."""
        now, value = time.monotonic(), change.value
        of_job = change.resource == "jobs"
        owners = [value["metadata"]] if of_job else value["metadata"].get("ownerReferences") or ()
        for uid in (owner["uid"] for owner in owners if owner["uid"] in self._states):
            state = self._states[uid]
            facts = (state.on_job if of_job else state.on_pod)(change.kind, value, now=now)
            return [(uid, fact) for fact in facts]
        return []

    def _look(self, now: float) -> list[tuple[str, Fact]]:
        """Reads the events of pods that do not start and of Jobs that lack pods."""
        facts: list[tuple[str, Fact]] = []
        for uid, state in self._states.items():
            try:
                for pod, _ in state.slow_pods(now=now, after_s=LOOK_S)[:LOOKS]:
                    state.on_pod_events(pod, self._cluster.events_of(pod), now=now)
                if state.lacks_pods():
                    facts += [(uid, fact) for fact in state.on_job_events(self._cluster.events_of(uid), now=now)]
            except LwfedError:
                return facts  # a lasting error shows at the next poll
        return facts

    def _settle(self, facts: Iterable[tuple[str, Fact]]) -> Iterator[Outcome]:
        for uid, fact in facts:
            match fact:
                case Started(client, pod, node):
                    self._clients[pod] = client
                    self._logs.follow(pod)
                    self._emit(ClientStarted(client=client, step=self._call.step, pod=pod, node=node))
                case Notice(client, line):
                    self._emit(ClientWaiting(client=client, line=line))
                case Ended(outcome):
                    yield outcome
                case Lost(reason):
                    yield from self._replace(uid, reason)

    def _replace(self, uid: str, reason: str) -> Iterator[Outcome]:
        """Creates another Job for the unfinished tasks of a lost one."""
        state, (name, handle) = self._states.pop(uid), self._handles.pop(uid)
        _, tasks = self._work[name]
        left = [task for task in tasks if _client_of(task) in state.open]
        if reasons.job_end(state.value) is None:
            self._jobs.end(handle)
        if self._made[name] < self._settings.attempts:
            self._warn(f"the Job {handle.name} ended with {len(left)} task(s) unfinished: {reason}; creating another")
            self._begin(name, left)
            return
        for task in left:
            client = _client_of(task)
            failed = state.failure_of(client)
            code, words = (failed.exit_code, failed.reason) if failed else (1, f"the Job {handle.name} ended: {reason}")
            yield Outcome(client, code, words)

    def _late(self) -> Iterator[Outcome]:
        """Yields a failure for each client that is not done by the deadline."""
        for state in self._states.values():
            for client in sorted(state.open):
                why = state.why_open(client)
                words = f"not done before the deadline of {self._call.deadline_s:g} s" + (f"; {why}" if why else "")
                yield Outcome(client, 1, words)

    def _clean_up(self) -> None:
        """Deletes Jobs that nobody needs any longer; finished Jobs stay for inspection until their TTL."""
        for uid, (_, handle) in self._handles.items():
            state = self._states[uid]
            if not state.succeeded and not state.is_over:
                self._jobs.end(handle)
            self._jobs.forget(handle)

    def _drain(self) -> None:
        """Waits for the last lines of ended pods and for the end of Jobs whose clients failed."""
        until = time.monotonic() + DRAIN_S
        while time.monotonic() < until and (self._logs.busy() or any(map(_should_end, self._states.values()))):
            self._show_lines(min(0.05, self._poll.due_in_s))
            if self._poll.due_in_s == 0:
                for change in self._poll.look():
                    self._facts(change)

    def _show_lines(self, wait_s: float) -> None:
        """Shows the log lines that arrive within `wait_s`, and those already in the queue."""
        until = time.monotonic() + wait_s
        with suppress(queue.Empty):
            while (left_s := until - time.monotonic()) > 0:
                self._show(self._lines.get(timeout=left_s))
        for _ in range(self._lines.qsize()):
            self._show(self._lines.get())

    def _show(self, item: Line | Denied) -> None:
        match item:
            case Denied(error):
                self._warn(f"the logs of pods cannot be shown: {error}")
            case Line(pod, text):
                event = reasons.log_event(text)
                with suppress(ValidationError):  # of another version of lwfed: shown as it is
                    if event is not None:
                        if event[0] in PASSED_ON:
                            self._emit(read_event(*event))
                        return
                self._emit(ClientLog(client=self._clients.get(pod, pod), line=text))

    def _warn(self, message: str) -> None:
        self._emit(Warning(message=message))

    def _explain(self, pool: PoolSpec, pod: Mapping[str, Any]) -> reasons.Failure:
        """Returns why a pod failed; shows the end of its log if that is not followed."""
        name = pod["metadata"]["name"]
        found = reasons.failure(
            pod, container=CONTAINER, memory_limit=memory_limit(pool), predicted=self._predicted, pool=pool.name
        )
        if not found.retried and self._logs.misses(name):
            for line in reasons.text_lines(self._logs.tail(name, lines=TAIL)):
                self._emit(ClientLog(client=self._clients.get(name, name), line=line))
        return found


def _should_end(state: JobState) -> bool:
    return not state.succeeded and not state.is_over and not state.has_live_pods


def _client_of(task: PoolTask | ServerTask) -> str:
    return str(getattr(task, "client", SERVER))
