"""Decides how a run ended: from its own log, or from the platform's state if the log does not say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from lwfed.tracking.jsonlines import Record

SUCCEEDED = frozenset({"COMPLETE", "SUCCEEDED", "SKIPPED"})
FAILED = frozenset({"FAILED", "ERROR"})
"""States that Kubeflow Pipelines 2.17 passes to an exit task: COMPLETE after success, FAILED after a failed task,
RUNNING after a terminate. SUCCEEDED was never seen there; `kfp.local` uses it."""

CANCELLED_REASON = "the run was cancelled"


@dataclass(frozen=True, slots=True)
class Ending:
    """How a run ended.

    Attributes:
        status: `finished`, `failed` or `cancelled`.
        reason: Why it ended early; empty if it finished.
    """

    status: Literal["finished", "failed", "cancelled"]
    reason: str = ""


def end_of(events: Sequence[Record]) -> Record | None:
    """Returns the event that ended a run's last attempt.

    Args:
        events: The run's log, as returned by `read_events`; may be empty.

    Returns:
        The last `finish` or `fail`; None if the run started again after it, or was killed.
    """
    last = next((event for event in reversed(events) if event["event"] in ("start", "finish", "fail")), None)
    return None if last is None or last["event"] == "start" else last


def ending_of(events: Sequence[Record], *, state: str) -> Ending:
    """Decides how a run ended.

    Args:
        events: See `end_of`.
        state: The platform's state of the run's tasks.

    Returns:
        The end that `end_of` finds, unless the exit task wrote it: a retry may have ended differently since. Else the
        end that `state` means; a state that is neither success nor failure means that somebody cancelled the run.
    """
    last = end_of(events)
    if last is not None and last["event"] == "finish":
        return Ending("finished")
    if last is not None and (state in FAILED or not last.get("closing")):
        return Ending("cancelled" if last.get("cancelled") else "failed", str(last["reason"]))
    if state in SUCCEEDED:
        return Ending("finished")
    if state in FAILED:
        return Ending("failed", f"the pipeline ended as {state}; the failed task's log says why")
    return Ending("cancelled", CANCELLED_REASON)
