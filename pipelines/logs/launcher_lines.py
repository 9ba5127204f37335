"""Kubeflow's own lines in a task's log: its launcher and its executor write some sixty of them around ours."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

LAUNCHER = re.compile(r"[IWEF]\d{4} \d\d:\d\d:\d\d\.\d+ +\d+ [\w./-]+\.go:\d+\] ")
EXECUTOR = re.compile(r"\[KFP Executor [^\]]*\]: ")
ARGO = re.compile(r"time=\S+ level=\w+ .*\bargo=true\b")
OPENS, CLOSES = "{", "}"


def own_lines(lines: Iterable[str]) -> Iterator[str]:
    """Leaves out what Kubeflow's launcher, its executor and Argo write.

    Args:
        lines: A task's log, line by line, as it comes.

    Yields:
        What the component wrote. The JSON that the launcher and the executor print goes with the line that opens it.
    """
    theirs = False  # whether the last line was one of theirs: only such a line is followed by its JSON
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
