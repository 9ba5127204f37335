"""What a client of the `subprocess` launcher costs besides its work: the first of a slot, and each that follows.

Clients of the tiny experiment, one after another, on drawn shapes and on a folder of photos.
Run it: `python -m tests.bench.bench_launch`.
"""

from __future__ import annotations

import resource
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from lwfed import environment
from lwfed.launch.in_process import InProcess
from lwfed.launch.subprocess import Subprocess
from lwfed.round.workbench import Workbench
from lwfed.run.launcher import Launcher
from tests.tiny import run_tiny

DATA = Path(__file__).parents[2].parent / "shared/data/coco-mini"
CLIENTS = 4
AIM_S = 0.3
"""Most that a client of a later round may take besides its work."""


class Seconds(NamedTuple):
    """Per client: by the clock in the first round and in the last, and of a CPU on average."""

    first: float
    last: float
    cpu: float


def measure(folder: Path, *options: str) -> dict[str, Seconds]:
    """Measures one spec in this process and with a process for its clients.

    Args:
        folder: Where the stores go.
        options: Overrides of the tiny spec.

    Returns:
        Seconds per client, of which the work itself takes those of `in_process`.
    """

    def one(name: str, launcher: Any) -> Seconds:
        before = _cpu_s()
        done = run_tiny(
            folder / name, "stages.rounds=[4]", "model.encoders.image.blocks_per_stage=2",
            "model.encoders.text.blocks_per_stage=2", f"federation.num_clients={CLIENTS}", *options, launcher=launcher,
        )  # fmt: skip
        walls = [record["wall_s"]["train"] / CLIENTS for record in done.reported("round")]
        return Seconds(first=walls[0], last=walls[-1], cpu=(_cpu_s() - before) / (CLIENTS * len(walls)))

    def processes(bench: Workbench) -> Launcher:
        return Subprocess(bench.store, parallel=1, devices=1, retries=0)

    return {"in_process": one("here", InProcess), "subprocess": one("there", processes)}


def _cpu_s() -> float:
    """Seconds of CPU that ended children have used."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _table(name: str, found: dict[str, Seconds]) -> str:
    lines = [f"{name:<8}{'first round':>14}{'last round':>14}{'CPU':>10}   seconds per client"]
    lines += [f"{kind:<12}{s.first:>10.2f}{s.last:>14.2f}{s.cpu:>10.2f}" for kind, s in found.items()]
    return "\n".join(lines)


@pytest.mark.bench
def test_a_client_costs_little_besides_its_work(tmp_path: Path) -> None:
    found = measure(tmp_path, "data.shapes.train=48")
    print(_table("shapes", found))
    assert found["subprocess"].last - found["in_process"].last < AIM_S


if __name__ == "__main__":
    environment.quiet()
    with tempfile.TemporaryDirectory() as scratch:
        print(_table("shapes", measure(Path(scratch) / "shapes", "data.shapes.train=48")))
        print(_table("coco", measure(Path(scratch) / "coco", "data.source=coco", f"data.root={DATA}")))
