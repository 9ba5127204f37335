"""Collects the outcomes of one call's tasks from its Jobs; replaces Jobs that are lost.

`poll` and `logs` report what the Jobs' pods do, `state` derives what that means for a Job, and this module acts on it.
"""

from __future__ import annotations

import queue
import time
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

from pydantic import ValidationError

from lwfed.launch.kubernetes import reasons
from lwfed.launch.kubernetes.api import DeniedError
from lwfed.launch.kubernetes.jobs import Jobs
from lwfed.launch.kubernetes.logs import Lines, Logs
from lwfed.launch.kubernetes.manifests import CONTAINER, Call
from lwfed.launch.kubernetes.poll import Poll
from lwfed.launch.kubernetes.state import Fact, JobState
from lwfed.run.agents import SERVER
from lwfed.run.events import ClientLog, ClientStarted, ClientWaiting, Emit, Warning, read_event
from lwfed.run.launcher import Outcome
from lwfed.run.tasks import PodTask
from lwfed.spec.kubernetes import PoolSpec
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


PoolWork = tuple[PoolSpec, Sequence[PodTask]]
"""A pool and the tasks of its clients."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Job:
    """A Job of the call.

    Attributes:
        pool: Its pool.
        tasks: The tasks that the call needs from it.
        number: Its number among the call's Jobs for that pool, from 1.
        state: What is known of it and of its clients.
    """

    pool: PoolSpec
    tasks: Sequence[PodTask]
    number: int
    state: JobState


class Collector:
    """The Jobs of one call and their state.

    Args:
        call: The call.
        work: The tasks of each pool; one Job per pool.
        jobs: Creates and deletes Jobs, on their cluster and by their settings.
        emit: Receives what pods and Jobs do, as events.
        predicted: The ledger's prediction of a client's memory, for clients that run out of it; empty if unknown.
    """

    def __init__(self, call: Call, work: Sequence[PoolWork], *, jobs: Jobs, emit: Emit, predicted: str) -> None:
        self._call, self._work, self._jobs = call, work, jobs
        self._emit, self._predicted = emit, predicted
        self._begun: dict[str, _Job] = {}
        self._clients: dict[str, str] = {}
        self._lines: Lines = queue.SimpleQueue()
        self._logs = Logs(jobs.cluster, lines=self._lines)
        self._poll = Poll(jobs.cluster, selector=call.selector, warn=self._warn)
        self._looked_at = time.monotonic()

    def outcomes(self, *, need: int | None = None) -> Generator[Outcome]:
        """Yields one outcome per task as tasks end; see `Launcher.clients` for the errors.

        After `need` successes, the Jobs of the other tasks are deleted. If the consumer stops early, the Jobs stay: a
        coordinator that was ended has a successor.
        """
        missing = sum(len(tasks) for _, tasks in self._work) if need is None else need
        ends_at = time.monotonic() + (self._call.deadline_s or float("inf"))
        with self.collecting():
            while missing > 0 and self.open and (left_s := ends_at - time.monotonic()) > 0:
                for outcome in self.tick(min(self.due_in_s, left_s)):
                    missing -= outcome.exit_code == 0
                    yield outcome
            yield from self.finish(wanted=missing > 0)

    @contextmanager
    def collecting(self) -> Iterator[None]:
        """Creates the Jobs; follows their logs while the body runs, and deletes the Jobs if it fails."""
        try:
            for pool, tasks in self._work:
                self._begin(pool, tasks, number=1)
            yield
        except LwfedError:
            self.end()
            raise
        finally:
            self._logs.close()

    @property
    def open(self) -> list[str]:
        """The clients whose tasks have not ended."""
        return [client for job in self._begun.values() for client in sorted(job.state.open)]

    @property
    def due_in_s(self) -> float:
        """Seconds until the next poll of the cluster; 0 if it is due."""
        return self._poll.due_in_s

    def tick(self, wait_s: float) -> Iterator[Outcome]:
        """Shows lines that arrive within `wait_s`, then polls if that is due; yields the tasks that have ended."""
        self._show_lines(wait_s)
        if self._poll.due_in_s == 0:
            yield from self._settle(self._look())
        for job in [job for job in self._begun.values() if job.state.lost is not None and job.state.open]:
            yield from self._replace(job)

    def finish(self, *, wanted: bool) -> Iterator[Outcome]:
        """Deletes Jobs that nobody needs any longer; yields a failure for each open client if it is still wanted."""
        if wanted or not self.open:
            yield from self._late()
            self._drain()
        self._clean_up()

    def end(self) -> None:
        """Deletes all the call's Jobs."""
        for job in self._begun.values():
            self._jobs.end(job.state.handle)

    def _begin(self, pool: PoolSpec, tasks: Sequence[PodTask], *, number: int) -> None:
        handle = self._jobs.begin(self._call, pool, tasks)
        if handle.adopted:
            self._warn(f"takes over the Job {handle.name}, which another coordinator created")
        state = JobState(
            handle=handle,
            step=self._call.step,
            open={_client_of(task) for task in tasks},
            settings=self._jobs.settings,
            explain=partial(self._explain, pool),
        )
        self._begun[handle.uid] = _Job(pool=pool, tasks=tasks, number=number, state=state)

    def _look(self) -> list[Fact]:
        """Polls the cluster; returns the facts that follow, none while the API does not answer."""
        seen = self._poll.look()
        if seen is None:
            return []
        now = time.monotonic()
        if now - self._looked_at >= LOOK_S:  # before anything is given up, so that the reason is known
            self._looked_at = now
            self._read_events(now)
        jobs, pods = {job["metadata"]["uid"]: job for job in seen[0]}, seen[1]
        facts: list[Fact] = []
        for uid, job in self._begun.items():
            busy = any(other.state.works for other in self._begun.values())
            facts += job.state.look(jobs.get(uid), pods, now=now, busy=busy)
        return facts

    def _settle(self, facts: Iterable[Fact]) -> Iterator[Outcome]:
        for fact in facts:
            match fact:
                case Outcome():
                    yield fact
                case ClientWaiting():
                    self._emit(fact)
                case ClientStarted(client=client, pod=str(pod)):
                    self._clients[pod] = client
                    self._logs.follow(pod)
                    self._emit(fact)

    def _read_events(self, now: float) -> None:
        """Reads the events of pods that do not start and of Jobs that lack pods."""
        with suppress(LwfedError):  # a lasting error shows at the next poll
            for job in self._begun.values():
                for uid in job.state.unexplained(now=now, after_s=LOOK_S)[:LOOKS]:
                    job.state.on_events(uid, self._jobs.cluster.events_of(uid))

    def _replace(self, job: _Job) -> Iterator[Outcome]:
        """Creates another Job for the unfinished tasks of a lost one."""
        state, name, reason = job.state, job.state.handle.name, job.state.lost
        del self._begun[state.handle.uid]
        left = [task for task in job.tasks if _client_of(task) in state.open]
        if reasons.job_end(state.value) is None:
            self._jobs.end(state.handle)
        if job.number < self._jobs.settings.attempts:
            self._warn(f"the Job {name} ended with {len(left)} task(s) unfinished: {reason}; creating another")
            self._begin(job.pool, left, number=job.number + 1)
            return
        for client in map(_client_of, left):
            failed = state.failures.get(client) or reasons.Failure(1, f"the Job {name} ended: {reason}")
            yield Outcome(client, failed.exit_code, failed.reason)

    def _late(self) -> Iterator[Outcome]:
        """Yields a failure for each client that is not done by the deadline."""
        for job in self._begun.values():
            for client in sorted(job.state.open):
                why = job.state.why_open(client)
                words = f"not done before the deadline of {self._call.deadline_s:g} s" + (f"; {why}" if why else "")
                yield Outcome(client, 1, words)

    def _clean_up(self) -> None:
        """Deletes Jobs that nobody needs any longer; finished Jobs stay for inspection until their TTL."""
        for job in self._begun.values():
            if not job.state.succeeded and not job.state.is_over:
                self._jobs.end(job.state.handle)
            self._jobs.forget(job.state.handle)

    def _drain(self) -> None:
        """Waits for the last lines of ended pods and for the end of Jobs whose clients failed."""
        until = time.monotonic() + DRAIN_S
        while time.monotonic() < until and (self._logs.busy() or any(map(_should_end, self._begun.values()))):
            self._show_lines(min(0.05, self._poll.due_in_s))
            if self._poll.due_in_s == 0:
                self._look()

    def _show_lines(self, wait_s: float) -> None:
        """Shows the log lines that arrive within `wait_s`, and those already in the queue."""
        until = time.monotonic() + wait_s
        with suppress(queue.Empty):
            while (left_s := until - time.monotonic()) > 0:
                self._show(self._lines.get(timeout=left_s))
        for _ in range(self._lines.qsize()):
            self._show(self._lines.get())

    def _show(self, item: tuple[str, str] | DeniedError) -> None:
        match item:
            case DeniedError():
                self._warn(f"the logs of pods cannot be shown: {item}")
            case (pod, text):
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
        name, limit = pod["metadata"]["name"], pool.memory_limit or pool.memory
        found = reasons.failure(pod, container=CONTAINER, memory_limit=limit, predicted=self._predicted, pool=pool.name)
        if not found.retried and self._logs.misses(name):
            for line in reasons.text_lines(self._logs.tail(name, lines=TAIL)):
                self._emit(ClientLog(client=self._clients.get(name, name), line=line))
        return found


def _should_end(job: _Job) -> bool:
    return not job.state.succeeded and not job.state.is_over and not job.state.has_live_pods


def _client_of(task: PodTask) -> str:
    return str(getattr(task, "client", SERVER))
