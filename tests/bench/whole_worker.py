"""The worker of `lwfed.launch.worker`, which also notes its CPU seconds by part and its largest memory.

Run as `python -m tests.bench.whole_worker PID`; the file with the figures goes to the folder that `FOLDER` names.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from lwfed.launch import worker
from tests.bench.parts import Clock, peak_bytes, started

FOLDER = "LWFED_BENCH_PARTS"
"""Variable that names the folder."""


def main() -> None:
    """Serves clients; after each, writes the figures so far, since a worker is ended by a signal."""
    clock = Clock()
    clock.install()
    started(clock)
    release, largest = worker.release_memory, 0

    def note() -> None:
        nonlocal largest
        largest = max(largest, peak_bytes())  # before it is reset
        values = {"parts": clock.split(), "peak_bytes": largest}
        Path(os.environ[FOLDER], f"{os.getpid()}.json").write_text(json.dumps(values), encoding="utf-8")
        release()

    worker.release_memory = note
    worker.main()


if __name__ == "__main__":
    main()
