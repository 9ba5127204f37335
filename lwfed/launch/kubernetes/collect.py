"""Collects the outcomes of one call's tasks from its Jobs; makes another Job for one that is lost.

Polls and logs say what the Jobs' pods do, `state` what that means for a Job, and this module what to do about it.
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
from lwfed.launch.kubernetes.jobs import Begun, Call, Jobs
from lwfed.launch.kubernetes.logs import Denied, Line, Lines, Logs
from lwfed.launch.kubernetes.manifests import CONTAINER, memory_limit
from lwfed.launch.kubernetes.names import SERVER
from lwfed.launch.kubernetes.poll import Change, Poll
from lwfed.launch.kubernetes.state import Ended, Fact, JobState, Lost, Said, Started
from lwfed.run.events import ClientLog, ClientStarted, ClientWaiting, Emit, Warning, read_event
from lwfed.run.launcher import Outcome
from lwfed.run.tasks import PoolTask, ServerTask
from lwfed.spec.kubernetes import KubernetesSpec, PoolSpec
from lwfed.types.errors import LwfedError

LOOK_S = 5.0
"""Seconds after which a pod that does not start has its events read, and between two such looks."""
LOOKS = 4
"""Most pods of a Job whose events are read at a time."""
DRAIN_S = 2.0
"""Longest wait for the last lines of pods, and for the end of Jobs whose clients failed."""
TAIL = 20
"""Lines of a failed pod's log that are shown where it was not followed."""
PASSED_ON = frozenset({"client_step", "checking", "warning"})
"""Events of pods that go on to the run's events; others could say what only a coordinator may."""


class Collector:
    """The Jobs of one call, and what has come of them so far.

    Args:
        call: The call.
        work: For each pool its tasks; one Job each.
        jobs: Makes and removes Jobs.
        cluster: Where they are.
        settings: How long they are waited for, and how often made again.
        emit: Takes what pods and Jobs do, as events.
        predicted: What the ledger says of a client's memory, for one that had too little; empty where unknown.
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
        self._begun: dict[str, tuple[str, Begun]] = {}
        self._made: dict[str, int] = dict.fromkeys(self._work, 0)
        self._clients: dict[str, str] = {}
        self._lines: Lines = queue.SimpleQueue()
        self._logs = Logs(cluster, lines=self._lines)
        self._poll = Poll(cluster, selector=call.selector, warn=self._warn)
        self._looked_at = time.monotonic()

    def outcomes(self) -> Generator[Outcome]:
        """Yields one outcome per task as they end; see `Launcher.clients` for what it raises.

        A consumer that stops early leaves the Jobs as they are: a coordinator that is ended has a successor.
        """
        ends_at = time.monotonic() + (self._call.deadline_s or float("inf"))
        try:
            for name, (_, tasks) in self._work.items():
                self._begin(name, tasks)
            while self._open() and time.monotonic() < ends_at:
                yield from self._next(ends_at)
            yield from self._late()
            self._drain()
            self._tidy()
        except LwfedError:
            self.end()
            raise
        finally:
            self._logs.close()

    def end(self) -> None:
        """Removes all its Jobs."""
        for _, begun in self._begun.values():
            self._jobs.end(begun)

    def _busy(self) -> bool:
        return any(state.works for state in self._states.values())

    def _open(self) -> bool:
        return any(state.open for state in self._states.values())

    def _begin(self, name: str, tasks: Sequence[PoolTask | ServerTask]) -> None:
        pool = self._work[name][0]
        begun = self._jobs.begin(self._call, pool, tasks)
        self._made[name] += 1
        if begun.adopted:
            self._warn(f"goes on with the Job {begun.name}, which another coordinator made")
        self._begun[begun.uid] = (name, begun)
        self._states[begun.uid] = JobState(
            name=begun.name,
            uid=begun.uid,
            clients=begun.clients,
            open={_client_of(task) for task in tasks},
            retries=self._settings.retries,
            pending_timeout_s=self._settings.pending_timeout_s,
            explain=partial(self._explain, pool),
            busy=self._busy,
        )

    def _next(self, ends_at: float) -> Iterator[Outcome]:
        """Shows lines until the next look is due; then takes what has changed, and what has become due."""
        self._show_lines(min(self._poll.due_in_s, max(0.0, ends_at - time.monotonic())))
        for change in self._poll.look():
            yield from self._settle(self._facts(change))
        now = time.monotonic()
        if now - self._looked_at >= LOOK_S:  # before anything is given up, so that it is known why
            self._looked_at = now
            yield from self._settle(self._look(now))
        for uid, state in list(self._states.items()):
            yield from self._settle((uid, fact) for fact in state.on_time(now=now))

    def _facts(self, change: Change) -> list[tuple[str, Fact]]:
        """Returns what a change means, each fact with the identity of its Job."""
        now, value = time.monotonic(), change.value
        of_job = change.resource == "jobs"
        owners = [value["metadata"]] if of_job else value["metadata"].get("ownerReferences") or ()
        for uid in (owner["uid"] for owner in owners if owner["uid"] in self._states):
            state = self._states[uid]
            facts = (state.on_job if of_job else state.on_pod)(change.kind, value, now=now)
            return [(uid, fact) for fact in facts]
        return []

    def _look(self, now: float) -> list[tuple[str, Fact]]:
        """Reads the events of pods that do not start, and of Jobs without pods."""
        facts: list[tuple[str, Fact]] = []
        for uid, state in self._states.items():
            try:
                for pod, _ in state.slow_pods(now=now, after_s=LOOK_S)[:LOOKS]:
                    state.on_pod_events(pod, self._cluster.events_of(pod), now=now)
                if state.lacks_pods():
                    facts += [(uid, fact) for fact in state.on_job_events(self._cluster.events_of(uid), now=now)]
            except LwfedError:
                return facts  # the next look notices where it matters
        return facts

    def _settle(self, facts: Iterable[tuple[str, Fact]]) -> Iterator[Outcome]:
        for uid, fact in facts:
            match fact:
                case Started(client, pod, node):
                    self._clients[pod] = client
                    self._logs.follow(pod)
                    self._emit(ClientStarted(client=client, step=self._call.step, pod=pod, node=node))
                case Said(client, line):
                    self._emit(ClientWaiting(client=client, line=line))
                case Ended(outcome):
                    yield outcome
                case Lost(reason):
                    yield from self._replace(uid, reason)

    def _replace(self, uid: str, reason: str) -> Iterator[Outcome]:
        """Has another Job do what a lost one has not done."""
        state, (name, begun) = self._states.pop(uid), self._begun.pop(uid)
        _, tasks = self._work[name]
        left = [task for task in tasks if _client_of(task) in state.open]
        if reasons.job_end(state.value) is None:
            self._jobs.end(begun)
        if self._made[name] < self._settings.attempts:
            self._warn(f"the Job {begun.name} ended with {len(left)} task(s) undone: {reason}; another is made")
            self._begin(name, left)
            return
        for task in left:
            client = _client_of(task)
            failed = state.failure_of(client)
            code, words = (failed.exit_code, failed.reason) if failed else (1, f"the Job {begun.name} ended: {reason}")
            yield Outcome(client, code, words)

    def _late(self) -> Iterator[Outcome]:
        """Gives up what is not done by the deadline."""
        for state in self._states.values():
            for client in sorted(state.open):
                why = state.why_open(client)
                words = f"not done before the deadline of {self._call.deadline_s:g} s" + (f"; {why}" if why else "")
                yield Outcome(client, 1, words)

    def _tidy(self) -> None:
        """Ends Jobs that would go on for nobody; those that are over stay to be looked at, until the cluster's time."""
        for uid, (_, begun) in self._begun.items():
            state = self._states[uid]
            if not state.succeeded and not state.is_over:
                self._jobs.end(begun)
            self._jobs.forget(begun)

    def _drain(self) -> None:
        """Takes the last lines of pods that have ended, and the end of Jobs whose clients failed."""
        until = time.monotonic() + DRAIN_S
        while time.monotonic() < until and (self._logs.busy() or any(map(_should_end, self._states.values()))):
            self._show_lines(min(0.05, self._poll.due_in_s))
            if self._poll.due_in_s == 0:
                for change in self._poll.look():
                    self._facts(change)

    def _show_lines(self, wait_s: float) -> None:
        """Shows the lines of logs that come within some time, and those that are there."""
        until = time.monotonic() + wait_s
        with suppress(queue.Empty):
            while (left_s := until - time.monotonic()) > 0:
                self._show(self._lines.get(timeout=left_s))
        for _ in range(self._lines.qsize()):
            self._show(self._lines.get())

    def _show(self, item: Line | Denied) -> None:
        match item:
            case Denied(error):
                self._warn(f"logs of pods are not shown here: {error}")
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
        """Says why a pod failed, and shows the end of its log where it is not being read."""
        name = pod["metadata"]["name"]
        found = reasons.failure(
            pod, container=CONTAINER, memory_limit=memory_limit(pool), predicted=self._predicted, pool=pool.name
        )
        if not found.retried and self._logs.misses(name):
            for line in reasons.words_of(self._logs.tail(name, lines=TAIL)):
                self._emit(ClientLog(client=self._clients.get(name, name), line=line))
        return found


def _should_end(state: JobState) -> bool:
    return not state.succeeded and not state.is_over and not state.has_live_pods


def _client_of(task: PoolTask | ServerTask) -> str:
    return str(getattr(task, "client", SERVER))
