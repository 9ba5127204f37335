"""A process that serves one client after another, and keeps its imports, store and data between them.

It reads `{"step": ..., "task": ...}` from standard input, one line per client, and writes JSON lines as `lwfed step
--json` does; `ready` follows a client's last event. A failure that concerns only the client's own data or plan is an
event. Any other ends the process with the exit code that `lwfed step` would have, so that a second try starts fresh.
"""

from __future__ import annotations

import json
import sys
from contextlib import suppress
from pathlib import Path

from lwfed.launch.exits import run_to_exit
from lwfed.launch.step_process import exit_with_parent, reporting_failure, run_task, task_of, write_event
from lwfed.run.tasks import ClientTask
from lwfed.types.errors import FINAL_CODES, LwfedError

REFERENCES = Path("/proc/self/clear_refs")
FORGET_PEAK = "5"
"""Writing it to `REFERENCES` resets the peak memory that Linux reports for a process (proc(5)); Linux only."""


def serve() -> None:
    """Serves requests until standard input ends.

    Raises:
        LwfedError: A client failed in a way that may have affected this process.
    """
    bench = None
    for line in sys.stdin:
        request = json.loads(line)
        try:
            with reporting_failure(True):
                task = task_of(request["step"], request["task"])
                if isinstance(task, ClientTask) and bench is None:
                    from lwfed.round.workbench import Workbench  # loads torch, which `inspect-client` does not need

                    bench = Workbench.at(task.store)
                run_task(request["step"], task, as_json=True, bench=bench)
        except LwfedError as error:
            if error.exit_code not in FINAL_CODES:
                raise
        release_memory()
        write_event("ready", {})


def release_memory() -> None:
    """Frees a GPU's cached memory, and resets the peak so that the next client's is measured by itself."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    with suppress(OSError):
        REFERENCES.write_text(FORGET_PEAK)


def main() -> None:
    """Runs as `python -m lwfed.launch.worker PID`, and exits when the process PID does."""
    exit_with_parent(int(sys.argv[1]))
    run_to_exit(serve)


if __name__ == "__main__":
    main()
