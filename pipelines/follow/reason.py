"""Finds out why a run failed from the log of the failed pod, since Kubeflow Pipelines does not say."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable

from lwfed.types.errors import EXIT_CODES, KINDS, LwfedError, error_of, exit_name
from pipelines.logs import own_lines
from pipelines.states.records import Pod, Snapshot, failed_pod

LINE = re.compile(r"\berror: (?P<message>\S.* -> \S.*)$")
RAISED = re.compile(r"^lwfed\.types\.errors\.(?P<kind>\w+): (?P<message>.+)$")
PYTHON = re.compile(r"^(?P<kind>(?:[A-Za-z_]\w*\.)*[A-Z]\w*(?:Error|Exception|Interrupt|Exit)): (?P<message>.+)$")
EXITED = re.compile(r"\bexit (?:status|code):? (?P<code>\d+)")
COLOURS = re.compile(r"\x1b\[[0-9;]*m")
KILLED = {
    137: "lwfed's process was killed from outside, most likely because it ran out of memory",
    143: "lwfed's process was terminated from outside",
}
TAIL = 5
"""Last lines of a log to show if it names no reason."""


def why_failed(run_id: str, snapshot: Snapshot, *, read: Callable[[Pod], str], page: str) -> LwfedError:
    """Returns why a run failed.

    Args:
        run_id: The run.
        snapshot: The last states of its tasks.
        read: Returns a pod's log; raises LwfedError if there is none.
        page: The URL of the run's page, for people.

    Returns:
        The error, with the exit code of the failed pod's process.
    """
    found = failed_pod(snapshot)
    if found is None:
        message = f": {snapshot.message}" if snapshot.message else ", and none of its tasks says why"
        return LwfedError(f"the run {run_id} failed{message}", remedy=f"see {page}")
    state, pod = found
    title = pod.name if state is None else f"{state.task.title}, its driver," if pod.is_driver else state.task.title
    short = run_id[:8]
    try:
        log = read(pod)
    except LwfedError as error:
        reason = _reason_of_pod(pod)
        if reason is not None:
            remedy = f"lwfed retry {short}; see also {page}"
            return error_of(reason.exit_code, f"{title} failed: {pod.message} -> {remedy}")
        message = f"{pod.message}; {error.problem}" if pod.message else error.problem
        return LwfedError(f"{title} failed: {message}", remedy=error.remedy or f"see {page}")
    reason = reason_of(log) or _reason_of_pod(pod)
    if reason is None:  # show the end of the log
        lines = _lines_of(log if pod.is_driver else "\n".join(own_lines(log.splitlines())))
        words = " | ".join([line for line in lines if line][-TAIL:]) or pod.message
        return LwfedError(f"{title} failed: {words[-400:]}", remedy=f"see the whole log with lwfed logs {run_id}")
    remedy = reason.remedy or f"resume with lwfed retry {short}; see more with lwfed logs {short}"
    return error_of(reason.exit_code, f"{title} failed: {reason.problem} -> {remedy}")


def reason_of(log: str) -> LwfedError | None:
    """Finds the error that ended a process in its log.

    Args:
        log: The process's log.

    Returns:
        The error with its exit code, from the last line that names an error of lwfed: as JSON, as a line of the command
        line, or in a traceback. Else from any other exception or exit status. None if there is none.
    """
    lines = _lines_of(log)
    code = _exit_code(lines)
    other: LwfedError | None = None
    for line in reversed(lines):
        if (ours := _own_error(line)) is not None:
            return ours
        if (printed := LINE.search(line)) is not None:
            kinds = {str(error): error.exit_code for error in map(_own_error, lines) if error is not None}
            message = printed["message"]
            return error_of(kinds.get(message, code or 1), message)  # the log may have it elsewhere, with its kind
        python = PYTHON.match(line)
        if python is not None and other is None:
            other = error_of(code if code in EXIT_CODES else 1, f"{python['kind']}: {python['message']}")
    if other is None and code in KILLED:
        other = error_of(18 if code == 137 else 1, f"{KILLED[code]} (exit code {code})")
    if other is None and code:
        other = error_of(code, f"its process ended with {exit_name(code)}")
    return other


def _own_error(line: str) -> LwfedError | None:
    """Parses an error of lwfed from a line: a failed step's JSON, or the last line of a traceback."""
    if (start := line.find('{"event": "failed"')) >= 0:
        try:
            values = json.loads(line[start:])["values"]
            return error_of(int(values["exit_code"]), str(values["message"]))
        except (ValueError, KeyError, TypeError):
            return None
    if (raised := RAISED.match(line)) is None:
        return None
    kind = next((kind for kind in KINDS if kind.__name__ == raised["kind"]), LwfedError)
    return error_of(kind.exit_code, raised["message"])


def _reason_of_pod(pod: Pod) -> LwfedError | None:
    """Returns the cluster's reason for a pod's failure; None if it is only that Python ended with an error."""
    return None if _exit_code([pod.message]) in (None, 1) else reason_of(pod.message)


def _exit_code(lines: Iterable[str]) -> int | None:
    """Returns the last non-zero exit code in a log; None if there is none."""
    codes = [int(match["code"]) for line in lines for match in EXITED.finditer(line)]
    return next((code for code in reversed(codes) if code), None)


def _lines_of(log: str) -> list[str]:
    return [COLOURS.sub("", line).strip() for line in log.splitlines()]
