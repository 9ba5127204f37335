"""Peak memory of a run with 4 and with 40 clients: clients pass one after another, updates are streamed.

Each run is a process of its own; its peak resident memory is read from the kernel. Run it:
`python tests/bench/bench_memory.py`.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

AIM = 0.05
EXAMPLES = 16
"""Of each client, so that a client's own work is the same in both runs."""


def peak_bytes(num_clients: int, *, folder: Path) -> int:
    """Trains two rounds with wide heads (84 MB exchanged) in a fresh process; returns its peak resident bytes."""
    overrides = [
        f"store.uri={folder}/store-{num_clients}", "tracking.uri=null", "stages.rounds=[2,0,0]", "data.workers=0",
        f"federation.num_clients={num_clients}", f"data.shapes.train={num_clients * EXAMPLES}", "data.shapes.test=32",
        "training.local_epochs=1", "training.batch_size=16", "model.projection.hidden=3072", "evaluation.every=10",
    ]  # fmt: skip
    command = [sys.executable, "-m", "lwfed", "run", *(part for item in overrides for part in ("-o", item))]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"the run with {num_clients} clients ended with {process.returncode}")
    return usage.ru_maxrss * 1024


def table(few: int, many: int) -> str:
    """Writes the figures for people."""
    return (
        f"peak resident memory   4 clients {few / 1e6:.0f} MB   40 clients {many / 1e6:.0f} MB   "
        f"ratio {many / few:.3f} (aim: within {AIM:.0%})"
    )


@pytest.mark.bench
def test_memory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    few, many = peak_bytes(4, folder=tmp_path), peak_bytes(40, folder=tmp_path)
    with capsys.disabled():
        print("\n" + table(few, many))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        print(table(peak_bytes(4, folder=Path(scratch)), peak_bytes(40, folder=Path(scratch))))
