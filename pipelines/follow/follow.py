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

    moved = asked = time.monotonic()  # when a container was last at work, and when we last looked for what holds it up

    def look() -> tuple[Any, Snapshot]:
        found = get_run(run.kfp, run.id)
        return found, read_states(run, found)

    def say_away(line: str) -> None:
        nonlocal moved, asked
        watcher.say(line)
        moved = asked = time.monotonic()  # nothing is seen of it meanwhile

    before: object = None
    wait_s = pace.first_poll_s
    with left_running(run.id):
        while True:
            found, snapshot = patiently(look, pace=pace, say=say_away)
            now = time.monotonic()
            watcher.tasks(found.state or "PENDING", snapshot.tasks)
            if is_over(found):
                return outcome_of(run, found, snapshot)
            pods = [(pod.name, pod.state) for pod in snapshot.pods]
            if pods != before or any(state == "RUNNING" for _, state in pods):
                before, moved, asked = pods, now, now
            still_s = now - moved
            if found.state == "CANCELING":
                if still_s >= pace.end_timeout_s:
                    raise LwfedError(
                        f"the run {run.id} was terminated, and has neither ended nor moved for {still_s:.0f} s",
                        remedy=f"kubectl -n {run.namespace} delete workflows -l pipeline/runid={run.id} ends it",
                    )
            elif still_s >= pace.start_timeout_s or now - asked >= pace.quiet_s:
                asked = now
                reasons, hidden = _reasons(run, snapshot, waiting=waiting)
                if still_s >= pace.start_timeout_s:
                    raise NotStartedError(
                        "; ".join([f"no container of the run {run.id} has started for {still_s:.0f} s", *reasons[:3]]),
                        remedy=f"the run still waits: fix what holds it up, or end it with lwfed cancel {run.id}",
                    )
                for line in reasons:
                    watcher.say(f"waits for {still_s:.0f} s: {line}")
                if not reasons:
                    watcher.say(f"no container has started for {still_s:.0f} s, and {hidden}; look at {run.page}")
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


def _reasons(run: KnownRun, snapshot: Snapshot, *, waiting: Waiting) -> tuple[list[str], str]:
    """Returns what holds a run up: in the words of the workflow, else in the cluster's; and why there are none."""
    said = [f"{pod.name}: {pod.message}" for pod in snapshot.pods if pod.state == "PENDING" and pod.message]
    try:
        return said or waiting(run), "no pod waits"
    except LwfedError as error:
        look = f"kubectl -n {run.namespace} get pods -l pipeline/runid={run.id}"
        return [], f"the cluster's pods are out of reach ({error.problem}); where they are not: {look}"
