"""Filters Kubeflow's own lines from a task's log: its launcher and its executor write about sixty around ours."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

LAUNCHER = re.compile(r"[IWEF]\d{4} \d\d:\d\d:\d\d\.\d+ +\d+ [\w./-]+\.go:\d+\] ")
EXECUTOR = re.compile(r"\[KFP Executor [^\]]*\]: ")
ARGO = re.compile(r"time=\S+ level=\w+ .*\bargo=true\b")
OPENS, CLOSES = "{", "}"


def own_lines(lines: Iterable[str]) -> Iterator[str]:
    """Removes the lines of Kubeflow's launcher and executor and of Argo.

    Args:
        lines: The lines of a task's log, as they arrive.

    Yields:
        The component's own lines. JSON of the launcher and the executor is removed with the line before it.
    """
    theirs = False  # whether the last line was Kubeflow's: only such a line is followed by JSON
    inside = False
    for line in lines:
        if inside:
            inside = line != CLOSES
        elif theirs and line == OPENS:
            inside = True
        elif LAUNCHER.match(line) or EXECUTOR.match(line) or ARGO.match(line):
            theirs, inside = True, line.endswith(OPENS)
        else:
            theirs = False
            yield line
