"""Follows a run to its end: reports what its tasks do, why it does not start, and how it ended."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Protocol

from lwfed.types.errors import LwfedError, NotStartedError
from pipelines.client.pace import Pace, left_running, with_retries
from pipelines.client.runs import KnownRun, is_over, was_cancelled
from pipelines.follow.reason import why_failed
from pipelines.logs import PodLogs
from pipelines.states.records import Snapshot, TaskState
from pipelines.states.workflow import look


class Watcher(Protocol):
    """Receives what a followed run does."""

    def tasks(self, state: str, states: Sequence[TaskState]) -> None:
        """Receives the current states of the tasks."""

    def say(self, line: str) -> None:
        """Receives a line for people."""


Waiting = Callable[[KnownRun], list[str]]
"""Returns why the pods of a run wait, one line each; raises LwfedError if that cannot be found out."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended.

    Attributes:
        run: The API's record of it.
        states: Its tasks.
        error: Why it failed; None if it succeeded.
    """

    run: Any
    states: tuple[TaskState, ...]
    error: LwfedError | None = None


def follow(run: KnownRun, *, watcher: Watcher, pace: Pace, waiting: Waiting) -> Outcome:
    """Follows a run until it ends.

    Args:
        run: The run.
        watcher: Receives what it does.
        pace: How often to poll, and how long to wait.
        waiting: Returns why the cluster's pods wait.

    Returns:
        How it ended.

    Raises:
        NotStartedError: No container starts in time.
        UnreachableError: The server does not answer for too long.
        LeftRunningError: Following was interrupted; the run continues.
        LwfedError: The server refuses, or reports tasks in an unknown format.
    """

    moved = checked = time.monotonic()  # when a container last ran, and when the reasons to wait were last requested

    def say_away(line: str) -> None:
        nonlocal moved, checked
        watcher.say(line)
        moved = checked = time.monotonic()  # nothing was visible meanwhile

    before: object = None
    wait_s = pace.first_poll_s
    with left_running(run.id):
        while True:
            found, snapshot = with_retries(lambda: look(run), pace=pace, say=say_away)
            now = time.monotonic()
            watcher.tasks(found.state or "PENDING", snapshot.tasks)
            if is_over(found):
                return outcome_of(run, found, snapshot)
            pods = [(pod.name, pod.state) for pod in snapshot.pods]
            if pods != before or any(state == "RUNNING" for _, state in pods):
                before, moved, checked = pods, now, now
            still_s = now - moved
            if found.state == "CANCELING":
                if still_s >= pace.end_timeout_s:
                    raise LwfedError(
                        f"the run {run.id} was terminated, but has made no progress for {still_s:.0f} s",
                        remedy=f"end it with kubectl -n {run.namespace} delete workflows -l pipeline/runid={run.id}",
                    )
            elif still_s >= pace.start_timeout_s or now - checked >= pace.quiet_s:
                checked = now
                reasons, hidden = _reasons(run, snapshot, waiting=waiting)
                if still_s >= pace.start_timeout_s:
                    raise NotStartedError(
                        "; ".join([f"no container of the run {run.id} has started for {still_s:.0f} s", *reasons[:3]]),
                        remedy=f"the run still waits: fix the cause, or end it with lwfed cancel {run.id}",
                    )
                for line in reasons:
                    watcher.say(f"has waited for {still_s:.0f} s: {line}")
                if not reasons:
                    watcher.say(f"no container has started for {still_s:.0f} s, and {hidden}; see {run.page}")
            time.sleep(wait_s)
            wait_s = min(pace.poll_s, wait_s * 1.5)


def outcome_of(run: KnownRun, found: Any, snapshot: Snapshot) -> Outcome:
    """Returns how a run ended, from its tasks and the log of the failed pod.

    Args:
        run: The run.
        found: The API's record of it.
        snapshot: The last states of its tasks.
    """
    if found.state in ("SUCCEEDED", "SKIPPED"):
        return Outcome(found, snapshot.tasks)
    if was_cancelled(found):
        cancelled = LwfedError("the run was cancelled", remedy=f"resume it with lwfed retry {run.id}")
        return Outcome(found, snapshot.tasks, cancelled)
    with closing(PodLogs(run)) as logs:
        return Outcome(found, snapshot.tasks, why_failed(run.id, snapshot, read=logs.read, page=run.page))


def _reasons(run: KnownRun, snapshot: Snapshot, *, waiting: Waiting) -> tuple[list[str], str]:
    """Returns why a run waits, from the workflow or else the cluster; and why there is no reason, if there is none."""
    messages = [f"{pod.name}: {pod.message}" for pod in snapshot.pods if pod.state == "PENDING" and pod.message]
    try:
        return messages or waiting(run), "no pod waits"
    except LwfedError as error:
        look = f"kubectl -n {run.namespace} get pods -l pipeline/runid={run.id}"
        return [], f"the cluster's pods cannot be read here ({error.problem}); elsewhere: {look}"
