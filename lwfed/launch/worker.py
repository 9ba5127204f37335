"""A process that works for one client after another, and keeps its imports, store and data open between them.

It reads `{"step": ..., "task": ...}` from standard input, one client on a line, and writes JSON lines as `lwfed step
--json` does; `ready` follows a client's last event. A failure that only concerns the client's own data or plan is an
event; any other ends the process, with the exit code that `lwfed step` would have, so that a second try starts afresh.
"""

from __future__ import annotations

import json
import sys
from contextlib import suppress
from pathlib import Path

from lwfed.launch.exits import run_to_exit
from lwfed.launch.step_process import end_with, run_task, task_of, tell, telling_of_failure
from lwfed.run.tasks import ClientTask
from lwfed.types.errors import FINAL_CODES, LwfedError

REFERENCES = Path("/proc/self/clear_refs")
FORGET_PEAK = "5"
"""Written to it, resets the peak that Linux reports of a process's memory (proc(5)); other systems lack the file."""


def serve() -> None:
    """Works until standard input ends.

    Raises:
        LwfedError: A client failed of something that may have left its traces in this process.
    """
    bench = None
    for line in sys.stdin:
        request = json.loads(line)
        try:
            with telling_of_failure(True):
                task = task_of(request["step"], request["task"])
                if isinstance(task, ClientTask) and bench is None:
                    from lwfed.round.workbench import Workbench  # loads torch, which a look at data does not need

                    bench = Workbench.at(task.store)
                run_task(request["step"], task, as_json=True, bench=bench)
        except LwfedError as error:
            if error.exit_code not in FINAL_CODES:
                raise
        _release_memory()
        tell("ready", {})


def _release_memory() -> None:
    """Leaves a GPU's memory to whoever works next, and has the next client's peak measured by itself."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    with suppress(OSError):
        REFERENCES.write_text(FORGET_PEAK)


def main() -> None:
    """Runs as `python -m lwfed.launch.worker PID`, and ends with the process of that id."""
    end_with(int(sys.argv[1]))
    run_to_exit(serve)


if __name__ == "__main__":
    main()
