"""Follows a run to its end: says what its tasks do, why it does not start, and what ended it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Protocol

from lwfed.types.errors import LwfedError, NotStartedError
from pipelines.client.pace import Pace, left_running, patiently
from pipelines.client.runs import KnownRun, get_run, is_over, was_cancelled
from pipelines.follow.reason import why_failed
from pipelines.logs.pods import PodLogs
from pipelines.states.reading import read_states
from pipelines.states.records import Snapshot, TaskState


class Watcher(Protocol):
    """Sees what a followed run does."""

    def tasks(self, state: str, states: Sequence[TaskState]) -> None:
        """Takes what the tasks do now."""

    def say(self, line: str) -> None:
        """Takes a line for people."""


Waiting = Callable[[KnownRun], list[str]]
"""Returns what holds the pods of a run up, one line each; raises LwfedError where that cannot be seen."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended.

    Attributes:
        run: The API's record of it.
        states: Its tasks.
        error: Why it failed; None where it succeeded.
    """

    run: Any
    states: tuple[TaskState, ...]
    error: LwfedError | None = None


def follow(run: KnownRun, *, watcher: Watcher, pace: Pace, waiting: Waiting) -> Outcome:
    """Follows a run until it is over.

    Args:
        run: The run.
        watcher: Sees what it does.
        pace: How often to look, and how long to wait.
        waiting: Looks at the cluster's pods.

    Returns:
        How it ended.

    Raises:
        NotStartedError: Nothing of it starts in time.
        UnreachableError: The server stays away.
        LeftRunningError: We were interrupted; the run goes on.
        LwfedError: The server refuses, or says nothing of tasks that we can read.
    """

    def look() -> tuple[Any, Snapshot]:
        found = get_run(run.kfp, run.id)
        return found, read_states(run, found)

    moved = asked = time.monotonic()  # when a container was last at work, and when we last looked for what holds it up
    before: object = None
    wait_s = pace.first_poll_s
    with left_running(run.id):
        while True:
            began = time.monotonic()
            found, snapshot = patiently(look, pace=pace, say=watcher.say)
            now = time.monotonic()
            moved, asked = moved + now - began, asked + now - began  # nothing was seen of it meanwhile
            watcher.tasks(found.state or "PENDING", snapshot.tasks)
            if is_over(found):
                return outcome_of(run, found, snapshot)
            pods = [(pod.name, pod.state) for pod in snapshot.pods]
            if pods != before or any(state == "RUNNING" for _, state in pods):
                before, moved, asked = pods, now, now
            still_s = now - moved
            _give_up(run, found, snapshot, seconds=still_s, pace=pace, waiting=waiting)
            if found.state != "CANCELING" and now - asked >= pace.quiet_s:
                asked = now
                for line in _held_up(run, snapshot, seconds=still_s, waiting=waiting):
                    watcher.say(line)
            time.sleep(wait_s)
            wait_s = min(pace.poll_s, wait_s * 1.5)


def outcome_of(run: KnownRun, found: Any, snapshot: Snapshot) -> Outcome:
    """Says how a run that is over ended, from its tasks and the log of the pod that failed.

    Args:
        run: The run.
        found: The API's record of it.
        snapshot: What its tasks did last.
    """
    if found.state in ("SUCCEEDED", "SKIPPED"):
        return Outcome(found, snapshot.tasks)
    if was_cancelled(found):
        cancelled = LwfedError("the run was cancelled", remedy=f"lwfed retry {run.id} goes on with it")
        return Outcome(found, snapshot.tasks, cancelled)
    with closing(PodLogs(run)) as logs:
        return Outcome(found, snapshot.tasks, why_failed(run.id, snapshot, read=logs.read, page=run.page))


def _give_up(run: KnownRun, found: Any, snapshot: Snapshot, *, seconds: float, pace: Pace, waiting: Waiting) -> None:
    """Raises the error of a run that has not moved for too long."""
    if found.state == "CANCELING":
        if seconds >= pace.end_timeout_s:
            raise LwfedError(
                f"the run {run.id} was terminated, and has neither ended nor moved for {seconds:.0f} s",
                remedy=f"kubectl -n {run.namespace} delete workflows -l pipeline/runid={run.id} ends it for good",
            )
    elif seconds >= pace.start_timeout_s:
        try:
            reasons = _messages(snapshot) or waiting(run)
        except LwfedError:
            reasons = []
        raise NotStartedError(
            "; ".join([f"no container of the run {run.id} has started for {seconds:.0f} s", *reasons[:3]]),
            remedy=f"the run still waits: fix what holds it up, or end it with lwfed cancel {run.id}",
        )


def _held_up(run: KnownRun, snapshot: Snapshot, *, seconds: float, waiting: Waiting) -> list[str]:
    """Says what holds a run up, in the workflow's words, else in the cluster's."""
    still = f"no container has started for {seconds:.0f} s"
    try:
        reasons = _messages(snapshot) or waiting(run)
    except LwfedError as error:
        return [
            f"{still}; the cluster's pods are out of reach ({error.problem}); look at {run.page} or kubectl get pods "
            f"-l pipeline/runid={run.id}"
        ]
    return [f"waits for {seconds:.0f} s: {line}" for line in reasons] or [
        f"{still}, and no pod waits; look at {run.page}"
    ]


def _messages(snapshot: Snapshot) -> list[str]:
    """Returns what the workflow itself says of pods that wait, such as one that a quota refuses."""
    return [f"{pod.name}: {pod.message}" for pod in snapshot.pods if pod.state == "PENDING" and pod.message]
