"""Why a pod waits, failed or was taken away, in one line each and in the cluster's own words: pure."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from lwfed.types.errors import OutOfMemoryError, exit_name

Values = Mapping[str, Any]

IMAGE = frozenset({"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "ImageInspectError"})
CONFIG = frozenset({"CreateContainerConfigError", "CreateContainerError", "RunContainerError"})
TROUBLE = frozenset({"FailedMount", "FailedAttachVolume", "FailedCreatePodSandBox", "FailedScheduling", "Failed"})
"""Reasons of a pod's events that say why it does not start."""
MAX_LINE = 400
REMEDIES: Mapping[str, str] = {
    "image": "name one that its node can have in kubernetes.image, or kubernetes.image_pull_secrets",
    "config": "make what it names in the namespace of the Jobs; `lwfed store init` makes the store's Secrets",
    "scheduling": "make room, ask for less in its pool, or check the pool's node_selector, tolerations and claims",
    "pulling": "raise kubernetes.pending_timeout_s, or load the image onto the nodes beforehand",
    "starting": "check its pool's volumes: kubectl describe pod says more while it waits",
    "refused": "raise the quota, make what is not there, or change what forbids it",
}
"""What helps a pod that was given up, by the kind of its wait; `refused` is one that is never made."""


@dataclass(frozen=True, slots=True)
class Wait:
    """Why a pod does not run yet.

    Attributes:
        kind: `image` and `config` seldom go by themselves; the others may.
        line: In words.
    """

    kind: Literal["image", "config", "scheduling", "pulling", "starting"]
    line: str


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a pod failed.

    Attributes:
        exit_code: As in `lwfed.types.errors.EXIT_CODES`, or the process's.
        reason: One line; a remedy follows ` -> `.
        retried: The cluster starts it again, whatever the retries: it was taken away.
    """

    exit_code: int
    reason: str
    retried: bool = False


def waiting(pod: Values, *, container: str, events: Sequence[Values] = ()) -> Wait | None:
    """Says why a pod waits.

    Args:
        pod: The pod.
        container: Its container that counts.
        events: What the cluster tells of it, oldest first; needed only where the pod's state says nothing.

    Returns:
        None where it runs, is over, or is just being started.
    """
    if pod["status"].get("phase", "Pending") != "Pending" or is_running(pod, container=container):
        return None
    state = (_container(pod, container).get("state") or {}).get("waiting") or {}
    reason, message = state.get("reason", ""), state.get("message", "")
    if reason in IMAGE:
        return Wait("image", f"its image cannot be had: {_joined(reason, message)}")
    if reason in CONFIG:
        return Wait("config", f"its container cannot be made: {_joined(reason, message)}")
    scheduled = _condition(pod, "PodScheduled")
    if scheduled is not None and scheduled.get("status") == "False":
        words = scheduled.get("message", "").partition(" preemption:")[0].rstrip()
        return Wait("scheduling", f"no node takes its pod: {_joined(scheduled.get('reason', ''), words)}")
    told = [event for event in events if event.get("reason") in TROUBLE]
    if told:
        return Wait("starting", f"its pod does not start: {_joined(told[-1]['reason'], told[-1].get('message', ''))}")
    pulling = [event for event in events if event.get("reason") in ("Pulling", "Pulled")]
    if pulling and pulling[-1]["reason"] == "Pulling":
        return Wait("pulling", f"its node pulls the image: {one_line(pulling[-1].get('message', ''))}")
    return None


def is_being_made(pod: Values, *, container: str) -> bool:
    """Whether a pod has a node and its container is not there yet: its events may say why that takes long."""
    if pod["status"].get("phase") != "Pending" or is_running(pod, container=container):
        return False
    return waiting(pod, container=container) is None and bool(pod["spec"].get("nodeName"))


def is_running(pod: Values, *, container: str) -> bool:
    """Whether the container has been started; a pod may still be Pending when a short one is over."""
    state = _container(pod, container).get("state") or {}
    return "running" in state or "terminated" in state


def failure(pod: Values, *, container: str, memory_limit: str | None, predicted: str = "", pool: str = "") -> Failure:
    """Says why a failed pod failed.

    Args:
        pod: The pod.
        container: Its container that counts.
        memory_limit: Its limit on memory, as written.
        predicted: What the ledger says of the memory, in words; may be empty.
        pool: Its pool.
    """
    status = pod["status"]
    state = (_container(pod, container).get("state") or {}).get("terminated") or {}
    taken = _condition(pod, "DisruptionTarget")
    if taken is not None and taken.get("status") == "True":
        words = _joined(taken.get("reason", ""), taken.get("message", ""))
        return Failure(1, f"its pod was taken away: {words}", retried=True)
    if state.get("reason") == "OOMKilled":
        limit = f"its limit of {memory_limit}" if memory_limit else "the node's memory"
        beside = f"; {predicted}" if predicted else ""
        remedy = f"raise memory of the pool `{pool}`, or lower training.batch_size"
        return Failure(OutOfMemoryError.exit_code, f"out of memory: killed at {limit}{beside} -> {remedy}")
    if not state:
        words = _joined(status.get("reason", ""), status.get("message", ""))
        return Failure(1, f"its pod failed: {words or 'it left no word'}")
    code = int(state.get("exitCode", 1)) or 1
    if state.get("reason") in ("StartError", "ContainerCannotRun"):
        return Failure(code, f"its container could not start: {one_line(state.get('message', ''))}")
    return _told(code, state.get("message", ""))


def log_event(line: str) -> tuple[str, dict[str, Any]] | None:
    """Reads a line of a pod's log as an event (kind, values); None where it is anything else."""
    if not line.startswith("{"):
        return None
    try:
        event = json.loads(line)
    except ValueError:
        return None
    kind, values = (event.get("event"), event.get("values")) if isinstance(event, dict) else (None, None)
    return (kind, values) if isinstance(kind, str) and isinstance(values, dict) else None


def words_of(message: str) -> list[str]:
    """Gives the lines of a log that are for people."""
    return [line.rstrip() for line in message.splitlines() if line.strip() and log_event(line) is None]


def job_end(job: Values) -> tuple[str, str] | None:
    """Gives how a Job ended, as (type, words): `Complete`, or `Failed` with why; None while it goes on."""
    for kind in ("Failed", "FailureTarget", "Complete"):
        found = _condition(job, kind)
        if found is not None and found.get("status") == "True":
            words = _joined(found.get("reason", ""), found.get("message", ""))
            return ("Complete", "") if kind == "Complete" else ("Failed", words)
    return None


def ended_by_indexes(job: Values) -> bool:
    """Whether a failed Job failed because single indexes did, so that each has its own reason."""
    conditions = (_condition(job, kind) or {} for kind in ("Failed", "FailureTarget"))
    return any(found.get("reason") == "FailedIndexes" for found in conditions)


def is_suspended(job: Values) -> bool:
    """Whether a Job waits for leave to start."""
    return bool((job.get("spec") or {}).get("suspend"))


def indexes(text: str | None) -> set[int]:
    """Reads Kubernetes' way to write index sets, such as `0,2-4`."""
    found: set[int] = set()
    for part in filter(None, (text or "").split(",")):
        first, _, last = part.partition("-")
        found.update(range(int(first), int(last or first) + 1))
    return found


def refused(events: Iterable[Values]) -> str | None:
    """Says why a Job's pods are not made (a quota, a policy), from its events, oldest first; None: nothing is told."""
    told = [event for event in events if event.get("reason") == "FailedCreate"]
    if not told:
        return None
    words = told[-1].get("message", "").removeprefix("Error creating: ")
    return one_line(re.sub(r'^pods "[^"]*" is forbidden: ', "", words))


def one_line(text: str) -> str:
    """Gives a text as one line that is not too long."""
    line = " ".join(text.split())
    return line if len(line) <= MAX_LINE else f"{line[: MAX_LINE - 3]}..."


def _told(code: int, message: str) -> Failure:
    """Reads why a process ended from the last lines of its log."""
    events = [event for event in map(log_event, message.splitlines()) if event is not None]
    failed = [values for kind, values in events if kind == "failed"]
    if failed:  # torchrun hides its processes' exit codes
        return Failure(int(failed[-1].get("exit_code", code)), one_line(str(failed[-1].get("message", ""))))
    lines = words_of(message)
    named = [line for line in lines if line.startswith("error: ")]
    last = named[-1].removeprefix("error: ") if named else (lines[-1] if lines else "it left no word")
    return Failure(code, f"{exit_name(code)}: {one_line(last)}")


def _joined(reason: str, message: str) -> str:
    return ": ".join(part for part in (reason, one_line(message)) if part)


def _container(pod: Values, name: str) -> dict[str, Any]:
    found = [status for status in pod["status"].get("containerStatuses") or () if status["name"] == name]
    return found[0] if found else {}


def _condition(thing: Values, kind: str) -> dict[str, Any] | None:
    conditions = (thing.get("status") or {}).get("conditions") or ()
    return next((condition for condition in conditions if condition["type"] == kind), None)
