"""Why a task failed: read from its log, since Kubeflow Pipelines do not say."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable

from lwfed.types.errors import EXIT_CODES, KINDS, LwfedError, error_of, exit_name

LINE = re.compile(r"\berror: (?P<message>\S.* -> \S.*)$")
RAISED = re.compile(r"^lwfed\.types\.errors\.(?P<kind>\w+): (?P<message>.+)$")
PYTHON = re.compile(r"^(?P<kind>(?:[A-Za-z_]\w*\.)*[A-Z]\w*(?:Error|Exception|Interrupt|Exit)): (?P<message>.+)$")
EXITED = re.compile(r"\bexit (?:status|code):? (?P<code>\d+)")
COLOURS = re.compile(r"\x1b\[[0-9;]*m")
KILLED = {
    137: "lwfed's process was killed from outside, most likely for want of memory",
    143: "lwfed's process was ended from outside",
}
TAIL = 5


def reason_of(log: str) -> LwfedError | None:
    """Finds the error that ended a process, in its log.

    Args:
        log: What the process wrote.

    Returns:
        The error, with the exit code it stands for: of the last line that names one of ours, as JSON, as a line of the
        command line or of a traceback; else of any other exception or exit status; None where nothing of that is there.
    """
    lines = [COLOURS.sub("", line).strip() for line in log.splitlines()]
    code = _exit_code(lines)
    other: LwfedError | None = None
    for line in reversed(lines):
        found = _event(line) or _raised(line)
        if found is not None:
            return found
        told = LINE.search(line)
        if told is not None:
            return error_of(_code_of_line(lines, told["message"]) or code or 1, told["message"])
        python = PYTHON.match(line)
        if python is not None and other is None:
            other = error_of(code if code in EXIT_CODES else 1, f"{python['kind']}: {python['message']}")
    if other is None and code in KILLED:
        other = error_of(18 if code == 137 else 1, f"{KILLED[code]} (exit code {code})")
    if other is None and code:
        other = error_of(code, f"its process ended with {exit_name(code)}")
    return other


def last_words(log: str) -> str:
    """Gives the end of a log on one line, for one that names no error."""
    lines = [COLOURS.sub("", line).strip() for line in log.splitlines() if line.strip()]
    return " | ".join(lines[-TAIL:])


def _event(line: str) -> LwfedError | None:
    """Reads the JSON that a pod's step writes when it fails."""
    start = line.find('{"event": "failed"')
    if start < 0:
        return None
    try:
        values = json.loads(line[start:])["values"]
        return error_of(int(values["exit_code"]), str(values["message"]))
    except (ValueError, KeyError, TypeError):
        return None


def _raised(line: str) -> LwfedError | None:
    told = RAISED.match(line)
    if told is None:
        return None
    kind = next((kind for kind in KINDS if kind.__name__ == told["kind"]), LwfedError)
    return error_of(kind.exit_code, told["message"])


def _code_of_line(lines: Iterable[str], message: str) -> int | None:
    """Finds the exit code of a message where the log says it elsewhere, with its kind."""
    return next((found.exit_code for found in map(_any, lines) if found is not None and str(found) == message), None)


def _any(line: str) -> LwfedError | None:
    return _event(line) or _raised(line)


def _exit_code(lines: Iterable[str]) -> int | None:
    codes = [int(match["code"]) for line in lines for match in EXITED.finditer(line)]
    ours = [code for code in codes if code]
    return ours[-1] if ours else None
