"""Follows a run to its end: tells what its tasks do, why it does not start, and what ended it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Protocol

from lwfed.types.errors import LwfedError, NotFoundError, UnreachableError, error_of
from pipelines.client import Kfp
from pipelines.client_runs import Facts, facts_of, get_run, is_over, read_log, was_cancelled
from pipelines.follow_reason import last_words, reason_of
from pipelines.follow_tasks import TaskState, failed_task, task_states

POLL_S = 5.0
FIRST_POLL_S = 1.0
QUIET_S = 60.0
"""Seconds without a container at work after which we look for what holds it up, and between two such looks."""
START_TIMEOUT_S = 600.0
PATIENCE_S = 300.0
"""Seconds for which a server may be away while we follow."""


class Watcher(Protocol):
    """Who is told."""

    def tasks(self, state: str, states: Sequence[TaskState]) -> None:
        """Takes what the tasks do now."""

    def say(self, line: str) -> None:
        """Takes a line for people."""


Waiting = Callable[[str], list[str]]
"""Gives what holds the pods of a run up, one line each; raises LwfedError where that cannot be seen."""


@dataclass(frozen=True, slots=True)
class Pace:
    """How long to wait for what, in seconds."""

    poll_s: float = POLL_S
    first_poll_s: float = FIRST_POLL_S
    quiet_s: float = QUIET_S
    start_timeout_s: float = START_TIMEOUT_S
    patience_s: float = PATIENCE_S


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended.

    Attributes:
        run: As the API gives it.
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


def follow(kfp: Kfp, run_id: str, *, watcher: Watcher, pace: Pace, waiting: Waiting) -> Outcome:
    """Follows a run until it is over.

    Args:
        kfp: The server.
        run_id: The run.
        watcher: Who is told.
        pace: How often to look, and how long to wait.
        waiting: Looks at the cluster's pods.

    Returns:
        How it ended.

    Raises:
        LwfedError: Nothing of it starts in time, or the server stays away.
        GoneOnError: We were interrupted; the run goes on.
    """
    try:
        return _follow(kfp, run_id, watcher=watcher, pace=pace, waiting=waiting)
    except KeyboardInterrupt:
        raise GoneOnError(
            f"no longer following; the run {run_id} goes on",
            remedy=f"lwfed logs {run_id} --follow, or to end it: lwfed cancel {run_id}",
        ) from None


def outcome_of(kfp: Kfp, run: Any, facts: Facts) -> Outcome:
    """Says how a run that is over ended, from its states and its failed task's log."""
    states = tuple(task_states(run, facts.tasks))
    if run.state in ("SUCCEEDED", "SKIPPED"):
        return Outcome(run, states)
    if was_cancelled(run):
        return Outcome(
            run, states, LwfedError("the run was cancelled", remedy=f"lwfed retry {run.run_id} goes on with it")
        )
    return Outcome(run, states, _why(kfp, run, states))


def _follow(kfp: Kfp, run_id: str, *, watcher: Watcher, pace: Pace, waiting: Waiting) -> Outcome:
    facts: Facts | None = None
    moved = asked = answered = time.monotonic()
    before: object = None
    wait_s = pace.first_poll_s
    while True:
        try:
            run = get_run(kfp, run_id)
            facts = facts or facts_of(kfp, run)
            answered = time.monotonic()
        except UnreachableError as error:
            if time.monotonic() - answered > pace.patience_s:
                raise
            watcher.say(f"{error.problem}; trying again")
            time.sleep(wait_s)
            continue
        states = task_states(run, facts.tasks)
        watcher.tasks(run.state, states)
        if is_over(run):
            return outcome_of(kfp, run, facts)
        now = time.monotonic()
        shown = [(pod.name, pod.state) for state in states for pod in state.pods]
        if shown != before or any(state == "RUNNING" for _, state in shown):
            before, moved, asked = shown, now, now
        if now - asked >= pace.quiet_s:
            asked = now
            for line in _held_up(run, seconds=now - moved, waiting=waiting, kfp=kfp):
                watcher.say(line)
        if now - moved >= pace.start_timeout_s:
            raise LwfedError(
                f"no container of the run {run_id} has started for {now - moved:.0f} s"
                + "".join(f"; {line}" for line in _seen(run_id, waiting)),
                remedy=f"the run still waits: mend what holds it up, or end it with lwfed cancel {run_id}",
            )
        time.sleep(wait_s)
        wait_s = min(pace.poll_s, wait_s * 1.5)


def _held_up(run: Any, *, seconds: float, waiting: Waiting, kfp: Kfp) -> list[str]:
    try:
        found = waiting(str(run.run_id))
    except LwfedError as error:
        return [
            f"no container has started for {seconds:.0f} s; the cluster's pods are out of reach ({error.problem}); "
            f"look at {kfp.run_url(run.run_id)} or kubectl get pods -l pipeline/runid={run.run_id}"
        ]
    if not found:
        return [f"no container has started for {seconds:.0f} s, and no pod waits; look at {kfp.run_url(run.run_id)}"]
    return [f"waits for {seconds:.0f} s: {line}" for line in found]


def _seen(run_id: str, waiting: Waiting) -> list[str]:
    try:
        return waiting(run_id)[:3]
    except LwfedError:
        return []


def _why(kfp: Kfp, run: Any, states: Sequence[TaskState]) -> LwfedError:
    where = kfp.run_url(run.run_id)
    found = failed_task(states)
    if found is None:
        return LwfedError(
            f"the run {run.run_id} failed, and none of its tasks says why",
            remedy=f"see the workflow's message: {where}",
        )
    state, pod = found
    title = f"{state.task.title}, its driver," if pod.is_driver else state.task.title
    try:
        log = read_log(kfp, run, pod.name)
    except NotFoundError as error:
        return LwfedError(f"{title} failed, and {error.problem}", remedy=f"see {where}")
    except LwfedError as error:
        return LwfedError(f"{title} failed, and its log cannot be read: {error.problem}", remedy=f"see {where}")
    reason = reason_of(log)
    if reason is None:
        return LwfedError(
            f"{title} failed: {last_words(log)[-400:]}", remedy=f"lwfed logs {run.run_id} shows all of it"
        )
    remedy = reason.remedy or f"lwfed logs {run.run_id} shows more"
    return error_of(reason.exit_code, f"{title} failed: {reason.problem} -> {remedy}")


def now() -> datetime:
    """The time that tasks' times are compared with."""
    return datetime.now(UTC)
