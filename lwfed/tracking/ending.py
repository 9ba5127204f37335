"""How a run ended: its own log decides, and the platform that ran it is asked only where the log does not say."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from lwfed.tracking.protocol import Record

SUCCEEDED = frozenset({"COMPLETE", "SUCCEEDED", "SKIPPED"})
FAILED = frozenset({"FAILED", "ERROR"})
"""What Kubeflow Pipelines 2.17 tell an exit task: COMPLETE after success, FAILED after a failed task, RUNNING after a
terminate; SUCCEEDED was never seen there, and is what `kfp.local` says."""

CANCELLED_REASON = "the run was cancelled"


@dataclass(frozen=True, slots=True)
class Ending:
    """How a run ended.

    Attributes:
        status: `finished`, `failed` or `cancelled`.
        reason: Why it ended early; empty where it finished.
    """

    status: Literal["finished", "failed", "cancelled"]
    reason: str = ""


def ending_of(events: Iterable[Record], *, state: str) -> Ending:
    """Decides how a run ended.

    Args:
        events: The run's log, as `read_events` returned it; empty where the run left none.
        state: The platform's word for how its tasks ended.

    Returns:
        What the last end in the log says, unless the run started again after it, or the exit task closed it then: a
        retry may have ended in another way. Else what `state` says, where any state that is neither success nor
        failure means that somebody ended the run.
    """
    last: Record = {"event": "start"}
    for event in events:
        if event["event"] in ("start", "finish", "fail"):
            last = event
    if last["event"] == "finish":
        return Ending("finished")
    if last["event"] == "fail" and (state in FAILED or not last.get("closing")):
        return Ending("cancelled" if last.get("cancelled") else "failed", str(last["reason"]))
    if state in SUCCEEDED:
        return Ending("finished")
    if state in FAILED:
        return Ending("failed", f"the pipeline ended as {state}; the failed task's log says why")
    return Ending("cancelled", CANCELLED_REASON)
