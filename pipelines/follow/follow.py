"""Follows a run to its end: says what its tasks do, why it does not start, and what ended it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Protocol

from lwfed.types.errors import LwfedError, NotStartedError, UnreachableError
from pipelines.client.kubeflow import Kfp
from pipelines.client.runs import Facts, facts_of, get_run, is_over, was_cancelled
from pipelines.follow.reason import why_failed
from pipelines.logs.pods import PodLogs
from pipelines.states.reading import read_states
from pipelines.states.records import Snapshot, TaskState

POLL_S = 5.0
FIRST_POLL_S = 1.0
QUIET_S = 60.0
"""Seconds without a container at work after which we look for what holds it up, and between two such looks."""
START_TIMEOUT_S = 600.0
PENDING = "PENDING"
"""What a run is taken for that has no state yet: 2.17.0 answers so for a moment after it was made."""
ENDING = "CANCELING"
"""The state of a run that somebody has terminated, and whose tasks have not ended yet."""
END_TIMEOUT_S = 900.0
"""Seconds for which a run that was terminated may neither end nor move: Argo can lose its way there."""
PATIENCE_S = 300.0
"""Seconds for which a server may be away while we follow."""


class Watcher(Protocol):
    """Sees what a followed run does."""

    def tasks(self, state: str, states: Sequence[TaskState]) -> None:
        """Takes what the tasks do now."""

    def say(self, line: str) -> None:
        """Takes a line for people."""


Waiting = Callable[[str], list[str]]
"""Returns what holds the pods of a run up, one line each; raises LwfedError where that cannot be seen."""


@dataclass(frozen=True, slots=True)
class Pace:
    """How long to wait for what, in seconds."""

    poll_s: float = POLL_S
    first_poll_s: float = FIRST_POLL_S
    quiet_s: float = QUIET_S
    start_timeout_s: float = START_TIMEOUT_S
    end_timeout_s: float = END_TIMEOUT_S
    patience_s: float = PATIENCE_S


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended.

    Attributes:
        run: As the API returns it.
        states: Its tasks.
        error: Why it failed; None where it succeeded.
    """

    run: Any
    states: tuple[TaskState, ...] = field(default=())
    error: LwfedError | None = None


class GoneOnError(LwfedError):
    """Following was interrupted; the run goes on."""

    exit_code = 130
    name = "interrupted"


def follow(kfp: Kfp, run_id: str, *, watcher: Watcher, pace: Pace, waiting: Waiting, namespace: str) -> Outcome:
    """Follows a run until it is over.

    Args:
        kfp: The server.
        run_id: The run.
        watcher: Sees what it does.
        pace: How often to look, and how long to wait.
        waiting: Looks at the cluster's pods.
        namespace: Where those are.

    Returns:
        How it ended.

    Raises:
        NotStartedError: Nothing of it starts in time.
        UnreachableError: The server stays away.
        GoneOnError: We were interrupted; the run goes on.
    """
    try:
        return _follow(kfp, run_id, watcher=watcher, pace=pace, waiting=waiting, namespace=namespace)
    except KeyboardInterrupt:
        raise GoneOnError(
            f"no longer following; the run {run_id} goes on",
            remedy=f"lwfed logs {run_id} --follow, or to end it: lwfed cancel {run_id}",
        ) from None


def outcome_of(kfp: Kfp, run: Any, snapshot: Snapshot, *, namespace: str) -> Outcome:
    """Says how a run that is over ended, from its tasks and the log of the pod that failed.

    Args:
        kfp: The server.
        run: The run, as the API returns it.
        snapshot: What its tasks did last.
        namespace: Where its pods are.
    """
    if run.state in ("SUCCEEDED", "SKIPPED"):
        return Outcome(run, snapshot.tasks)
    if was_cancelled(run):
        cancelled = LwfedError("the run was cancelled", remedy=f"lwfed retry {run.run_id} goes on with it")
        return Outcome(run, snapshot.tasks, cancelled)
    with PodLogs(kfp, str(run.run_id), namespace=namespace) as logs:
        error = why_failed(str(run.run_id), snapshot, read=logs.read, page=kfp.run_page(run.run_id))
    return Outcome(run, snapshot.tasks, error)


def _follow(kfp: Kfp, run_id: str, *, watcher: Watcher, pace: Pace, waiting: Waiting, namespace: str) -> Outcome:
    facts: Facts | None = None
    moved = asked = answered = time.monotonic()
    before: object = None
    wait_s = pace.first_poll_s
    while True:
        try:
            run = get_run(kfp, run_id)
            facts = facts or facts_of(kfp, run)
            snapshot = read_states(kfp, run_id, facts.tasks)
            answered = time.monotonic()
        except UnreachableError as error:
            if time.monotonic() - answered > pace.patience_s:
                raise
            watcher.say(f"{error.problem}; trying again")
            time.sleep(wait_s)
            moved = asked = time.monotonic()  # nothing was seen of it meanwhile
            continue
        watcher.tasks(run.state or PENDING, snapshot.tasks)
        if is_over(run):
            return outcome_of(kfp, run, snapshot, namespace=namespace)
        now = time.monotonic()
        pods = [(pod.name, pod.state) for pod in snapshot.pods]
        if pods != before or any(state == "RUNNING" for _, state in pods):
            before, moved, asked = pods, now, now
        still_s = now - moved
        if run.state == ENDING:
            if still_s >= pace.end_timeout_s:
                raise LwfedError(
                    f"the run {run_id} was terminated, and has neither ended nor moved for {still_s:.0f} s",
                    remedy=f"kubectl -n {namespace} delete workflows -l pipeline/runid={run_id} ends it for good",
                )
        elif still_s >= pace.start_timeout_s:
            reasons = _messages(snapshot) or _seen(run_id, waiting)
            raise NotStartedError(
                f"no container of the run {run_id} has started for {still_s:.0f} s"
                + "".join(f"; {line}" for line in reasons[:3]),
                remedy=f"the run still waits: fix what holds it up, or end it with lwfed cancel {run_id}",
            )
        elif now - asked >= pace.quiet_s:
            asked = now
            for line in _held_up(run_id, snapshot, seconds=still_s, waiting=waiting, page=kfp.run_page(run_id)):
                watcher.say(line)
        time.sleep(wait_s)
        wait_s = min(pace.poll_s, wait_s * 1.5)


def _held_up(run_id: str, snapshot: Snapshot, *, seconds: float, waiting: Waiting, page: str) -> list[str]:
    said = _messages(snapshot)
    try:
        found = said or waiting(run_id)
    except LwfedError as error:
        return [
            f"no container has started for {seconds:.0f} s; the cluster's pods are out of reach ({error.problem}); "
            f"look at {page} or kubectl get pods -l pipeline/runid={run_id}"
        ]
    if not found:
        return [f"no container has started for {seconds:.0f} s, and no pod waits; look at {page}"]
    return [f"waits for {seconds:.0f} s: {line}" for line in found]


def _messages(snapshot: Snapshot) -> list[str]:
    """Returns what the workflow itself says of pods that wait, such as one that a quota refuses."""
    return [f"{pod.name}: {pod.message}" for pod in snapshot.pods if pod.state == "PENDING" and pod.message]


def _seen(run_id: str, waiting: Waiting) -> list[str]:
    try:
        return waiting(run_id)
    except LwfedError:
        return []


def now() -> datetime:
    """The time that tasks' times are compared with."""
    return datetime.now(UTC)
