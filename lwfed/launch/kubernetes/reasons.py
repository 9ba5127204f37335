"""Says why a pod waits, failed or was evicted, in one line and in the cluster's own words: pure functions."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from lwfed.launch.exits import last_words
from lwfed.types.errors import OutOfMemoryError

Values = Mapping[str, Any]

IMAGE = frozenset({"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "ImageInspectError"})
CONFIG = frozenset({"CreateContainerConfigError", "CreateContainerError", "RunContainerError"})
TROUBLE = frozenset({"FailedMount", "FailedAttachVolume", "FailedCreatePodSandBox", "FailedScheduling", "Failed"})
"""Reasons of pod events that explain why a pod does not start."""
FROM_EVENTS = frozenset({"pulling", "starting"})
"""Kinds of waits that only the events of a pod tell; they may tell more later."""
MAX_LINE = 400
REMEDIES: Mapping[str, str] = {
    "image": "set kubernetes.image to one that the node can pull, or set kubernetes.image_pull_secrets",
    "config": "create what it names in the namespace of the Jobs; `lwfed store init` creates the store's Secrets",
    "scheduling": "free resources, request less in its pool, or check the pool's node_selector, tolerations and claims",
    "pulling": "raise kubernetes.pending_timeout_s, or load the image onto the nodes beforehand",
    "starting": "check its pool's volumes; `kubectl describe pod` says more while it waits",
    "refused": "raise the quota, create what is missing, or change the policy that forbids it",
}
"""Remedies for a pod that was given up, by the kind of its wait; `refused`: the cluster did not create it."""


@dataclass(frozen=True, slots=True)
class Wait:
    """Why a pod does not run yet.

    Attributes:
        kind: `image` and `config` rarely resolve themselves; the others may.
        line: The reason in words.
    """

    kind: Literal["image", "config", "scheduling", "pulling", "starting"]
    line: str


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a pod failed.

    Attributes:
        exit_code: As in `lwfed.types.errors.EXIT_CODES`, or the process's own.
        reason: One line; a remedy follows ` -> `.
        retried: Whether the cluster starts it again without counting it as a retry, since it was evicted.
    """

    exit_code: int
    reason: str
    retried: bool = False


def waiting(pod: Values, *, container: str, events: Sequence[Values] = ()) -> Wait | None:
    """Returns why a pod waits.

    Args:
        pod: The pod.
        container: The name of its main container.
        events: Its events, oldest first; used only if the pod's status gives no reason.

    Returns:
        None if it runs, has ended, or is just being started.
    """
    if pod["status"].get("phase", "Pending") != "Pending" or is_running(pod, container=container):
        return None
    state = (_container(pod, container).get("state") or {}).get("waiting") or {}
    if state.get("reason") in IMAGE:
        return Wait("image", f"its image cannot be pulled: {_words(state)}")
    if state.get("reason") in CONFIG:
        return Wait("config", f"its container cannot be created: {_words(state)}")
    scheduled = _condition(pod, "PodScheduled", status="False")
    if scheduled is not None:
        message = scheduled.get("message", "").partition(" preemption:")[0]
        return Wait("scheduling", f"no node fits its pod: {_words({**scheduled, 'message': message})}")
    found = [event for event in events if event.get("reason") in TROUBLE]
    if found:
        return Wait("starting", f"its pod does not start: {_words(found[-1])}")
    pulling = [event for event in events if event.get("reason") in ("Pulling", "Pulled")]
    if pulling and pulling[-1]["reason"] == "Pulling":
        return Wait("pulling", f"its node is pulling the image: {one_line(pulling[-1].get('message', ''))}")
    return None


def is_running(pod: Values, *, container: str) -> bool:
    """Whether the container has been started. A pod may still be Pending when a short container has ended."""
    state = _container(pod, container).get("state") or {}
    return "running" in state or "terminated" in state


def failure(pod: Values, *, container: str, memory_limit: str | None, predicted: str = "", pool: str = "") -> Failure:
    """Returns why a failed pod failed.

    Args:
        pod: The pod.
        container: The name of its main container.
        memory_limit: Its memory limit, as written.
        predicted: The ledger's prediction of the memory, in words; may be empty.
        pool: Its pool.
    """
    state = (_container(pod, container).get("state") or {}).get("terminated") or {}
    disrupted = _condition(pod, "DisruptionTarget")
    if disrupted is not None:
        return Failure(1, f"its pod was evicted: {_words(disrupted)}", retried=True)
    if state.get("reason") == "OOMKilled":
        limit = f"its limit of {memory_limit}" if memory_limit else "the node's memory"
        beside = f"; {predicted}" if predicted else ""
        remedy = f"raise the memory of the pool `{pool}`, or lower training.batch_size"
        return Failure(OutOfMemoryError.exit_code, f"out of memory: killed at {limit}{beside} -> {remedy}")
    if not state:
        return Failure(1, f"its pod failed: {_words(pod['status']) or 'no message'}")
    code = int(state.get("exitCode", 1)) or 1
    if state.get("reason") in ("StartError", "ContainerCannotRun"):
        return Failure(code, f"its container could not start: {one_line(state.get('message', ''))}")
    return _failure_from_log(code, state.get("message", ""))


def log_event(line: str) -> tuple[str, dict[str, Any]] | None:
    """Parses a line of a pod's log as an event (kind, values); returns None for any other line."""
    if not line.startswith("{"):
        return None
    try:
        event = json.loads(line)
    except ValueError:
        return None
    kind, values = (event.get("event"), event.get("values")) if isinstance(event, dict) else (None, None)
    return (kind, values) if isinstance(kind, str) and isinstance(values, dict) else None


def text_lines(message: str) -> list[str]:
    """Returns the lines of a log that are not events."""
    return [line.rstrip() for line in message.splitlines() if line.strip() and log_event(line) is None]


def job_end(job: Values) -> tuple[Literal["Complete", "Failed", "FailedIndexes"], str] | None:
    """Returns how a Job ended, and why; None while it runs.

    Returns:
        `Complete`; `FailedIndexes` if single indexes failed, so that each has its own reason; else `Failed`.
    """
    for kind in ("Failed", "FailureTarget", "Complete"):
        found = _condition(job, kind)
        if found is not None and kind == "Complete":
            return "Complete", ""
        if found is not None:
            return ("FailedIndexes" if found.get("reason") == "FailedIndexes" else "Failed"), _words(found)
    return None


def is_suspended(job: Values) -> bool:
    """Whether a Job is suspended until a queue admits it."""
    return bool((job.get("spec") or {}).get("suspend"))


def indexes(text: str | None) -> set[int]:
    """Parses Kubernetes' notation for sets of indexes, such as `0,2-4`."""
    found: set[int] = set()
    for part in filter(None, (text or "").split(",")):
        first, _, last = part.partition("-")
        found.update(range(int(first), int(last or first) + 1))
    return found


def refused(events: Iterable[Values]) -> str | None:
    """Returns why a Job's pods are not created (a quota, a policy), from its events, oldest first; None if unknown."""
    found = [event for event in events if event.get("reason") == "FailedCreate"]
    if not found:
        return None
    words = found[-1].get("message", "").removeprefix("Error creating: ")
    return one_line(re.sub(r'^pods "[^"]*" is forbidden: ', "", words))


def one_line(text: str) -> str:
    """Returns a text as one line of at most `MAX_LINE` characters."""
    line = " ".join(text.split())
    return line if len(line) <= MAX_LINE else f"{line[: MAX_LINE - 3]}..."


def _failure_from_log(code: int, message: str) -> Failure:
    """Returns why a process ended, from the last lines of its log."""
    events = [event for event in map(log_event, message.splitlines()) if event is not None]
    failed = [values for kind, values in events if kind == "failed"]
    if failed:  # torchrun hides its processes' exit codes
        return Failure(int(failed[-1].get("exit_code", code)), one_line(str(failed[-1].get("message", ""))))
    return Failure(code, one_line(last_words(code, "\n".join(text_lines(message)))))


def _words(values: Values) -> str:
    """Returns the reason and the message of a condition, a container's state or an event in one line."""
    return ": ".join(filter(None, (values.get("reason", ""), one_line(values.get("message", "")))))


def _container(pod: Values, name: str) -> dict[str, Any]:
    found = [status for status in pod["status"].get("containerStatuses") or () if status["name"] == name]
    return found[0] if found else {}


def _condition(thing: Values, kind: str, *, status: str = "True") -> dict[str, Any] | None:
    conditions = (thing.get("status") or {}).get("conditions") or ()
    return next((one for one in conditions if one["type"] == kind and one.get("status") == status), None)
