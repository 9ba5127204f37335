"""What the start of each step of a pod takes: seconds of a CPU, beside an interpreter that imports torch and ends.

The tiny experiment in a folder, so that of a step's seconds nearly all are its start. Ratios are of medians over turns,
in which all take part, so that all meet the same machine.
Run it: `python -m tests.bench.bench_start`.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest

from lwfed import environment
from lwfed.run.tasks import InspectTask, Place, PrepareTask, RunTask
from lwfed.spec.load import to_values
from lwfed.store import paths
from tests.starting import STEP, Start, run, run_step
from tests.tiny import ONE_STAGE, accept, begun, client_task, round_task, run_tiny, tiny_spec

TURNS = 3
TORCH = "torch alone"


class Found(NamedTuple):
    """Of one program: seconds of a CPU, modules, and the heavy ones among them."""

    cpu_s: float
    modules: int
    loaded: tuple[str, ...]


def measure(folder: Path, *, turns: int = TURNS) -> dict[str, Found]:
    """Measures all programs, in turns.

    Args:
        folder: Where the stores go.
        turns: How often.
    """
    seen: dict[str, list[Start]] = {}
    for turn in range(turns):
        for name, program in _programs(folder / str(turn)).items():
            seen.setdefault(name, []).append(program())
    return {
        name: Found(
            statistics.median(start.cpu_s for start in starts), starts[0].modules, tuple(sorted(starts[0].loaded))
        )
        for name, starts in seen.items()
    }


def _found(starts: Sequence[Start]) -> Found:
    cpu_s = statistics.median(start.cpu_s for start in starts)
    return Found(cpu_s, starts[0].modules, tuple(sorted(starts[0].loaded)))


def _programs(folder: Path) -> Mapping[str, Callable[[], Start]]:
    """Returns programs to be run in this order, each with all of its work before it."""
    bench, stage, _ = begun(folder / "round", *ONE_STAGE)
    finished = run_tiny(folder / "run", *ONE_STAGE)
    values = to_values(tiny_spec(folder / "run", *ONE_STAGE))
    of_run = {"store": finished.store.uri, "place": Place(device="cpu")}
    clients = ("client-000", "client-001")

    def aggregate() -> Start:
        accept(bench, stage, clients)
        return run_step("aggregate-round", round_task(bench, stage))

    def evaluate() -> Start:
        bench.store.delete(paths.round_metrics(stage.key, 1))
        return run_step("evaluate-round", round_task(bench, stage))

    return {
        "python": lambda: run(""),
        TORCH: lambda: run("import torch"),
        "lwfed --help": lambda: run(STEP, "--help"),
        "prepare": lambda: run_step("prepare", PrepareTask(run_id="other", spec=values, **of_run)),
        "inspect-client": lambda: run_step(
            "inspect-client", InspectTask(run_id="other", client=clients[0], spec=values, **of_run)
        ),
        "train-client": lambda: run_step("train-client", client_task(bench, stage, clients[0])),
        "aggregate-round": aggregate,
        "evaluate-round": evaluate,
        "finish": lambda: run_step("finish", RunTask(run_id=finished.run.run_id, **of_run)),
        "coordinator": lambda: run(
            "import lwfed.drive.tasks, lwfed.launch.kubernetes.launcher, lwfed.round.train_stage"
        ),
    }


def table(found: Mapping[str, Found]) -> str:
    """Writes the figures for people."""
    lines = [f"{'':<16}{'CPU s':>8}{'/ torch':>9}{'modules':>9}  heavy ones"]
    for name, (cpu_s, modules, loaded) in found.items():
        ratio = cpu_s / found[TORCH].cpu_s
        lines.append(f"{name:<16}{cpu_s:>8.2f}{ratio:>9.2f}{modules:>9}  {' '.join(loaded)}")
    return "\n".join(lines)


@pytest.mark.bench
def test_a_coordinator_starts_in_less_than_torch_takes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = measure(tmp_path)
    with capsys.disabled():
        print("\n" + table(found))
    assert found["coordinator"].cpu_s < found[TORCH].cpu_s


if __name__ == "__main__":
    environment.quiet()
    with tempfile.TemporaryDirectory() as scratch:
        print(table(measure(Path(scratch))))
