"""What the levers cost in quality: the built-in scenes, the same rounds with levers off and on, several seeds.

Each arm is a preset with a few keys changed, run as a user runs it; a run that is committed in the store is read.
Run it: `python tests/bench/bench_quality.py STORE [--seeds 0,1,2] [--jobs 2] [--arms "NAME;NAME"]`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

NO_LEVER = ("levers.last_block=full", "levers.prefix_cache=never", "levers.views=0")
INT8 = ("exchange.upload=int8", "exchange.download=int8")
CROPS = ("data.augment=true",)
ARMS: dict[str, tuple[str, tuple[str, ...]]] = {
    "layerwise, no lever": ("shapes-layerwise", NO_LEVER),
    "layerwise, default": ("shapes-layerwise", ()),
    "layerwise, int8 both ways": ("shapes-layerwise", INT8),
    "layerwise, every lever": (
        "shapes-layerwise",
        (
            "levers.last_block=absorbed", "levers.prefix_cache=always", "training.step_in_backward=true",
            "training.moments=int8", "data.length_buckets=true", *INT8,
        ),
    ),
    "progressive": ("shapes-progressive", ()),
    "end_to_end": ("shapes-end-to-end", ()),
    "crops, each epoch again": ("shapes-layerwise", (*CROPS, "levers.views=0")),
    "crops, 1 view kept": ("shapes-layerwise", (*CROPS, "levers.views=1", "levers.prefix_cache=always")),
    "crops, 4 views kept": ("shapes-layerwise", (*CROPS, "levers.views=4", "levers.prefix_cache=always")),
}  # fmt: skip
METRICS = {"test/t2i/R@1": "t2i R@1 %", "test/i2t/R@1": "i2t R@1 %", "test/loss": "test loss"}


def run(store: Path, arm: str, seed: int) -> dict[str, Any]:
    """Runs an arm with a seed, or reads the run; returns its summary."""
    preset, changes = ARMS[arm]
    options = [f"seed={seed}", f"store.uri={store}", "tracking.uri=null", "launch.device=cpu", *changes]
    command = [sys.executable, "-m", "lwfed", "run", preset, "--json", *(f"-o{option}" for option in options)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{arm}, seed {seed}: {done.stderr.strip()[-500:]}")
    return json.loads(done.stdout.splitlines()[-1])


def measure(store: Path, *, seeds: Sequence[int], arms: Sequence[str], jobs: int) -> dict[str, list[dict[str, Any]]]:
    """Runs every arm with every seed; returns the summaries by arm."""
    wanted = [(arm, seed) for arm in arms for seed in seeds]
    with ThreadPoolExecutor(max_workers=jobs) as pool:
        done = list(pool.map(lambda item: run(store, *item), wanted))
    return {arm: [one for (name, _), one in zip(wanted, done, strict=True) if name == arm] for arm in arms}


def table(found: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """Writes mean and sample standard deviation of each metric over the seeds."""
    lines = [f"{'':28}" + "".join(f"{label:>20}" for label in METRICS.values())]
    for arm, summaries in found.items():
        cells = []
        for name in METRICS:
            values = [summary["metrics"][name] * (1 if "loss" in name else 100) for summary in summaries]
            cells.append(f"{statistics.fmean(values):.2f} +- {statistics.stdev(values) if len(values) > 1 else 0:.2f}")
        lines.append(f"{arm:28}" + "".join(f"{cell:>20}" for cell in cells))
    return "\n".join(lines)


@pytest.mark.bench
def test_quality(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = measure(tmp_path, seeds=(0, 1, 2), arms=tuple(ARMS), jobs=2)
    with capsys.disabled():
        print("\n" + table(found))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", type=Path, help="folder that keeps the runs")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--arms", default=";".join(ARMS), help="names with semicolons between them")
    chosen = parser.parse_args()
    seeds = [int(seed) for seed in chosen.seeds.split(",")]
    print(table(measure(chosen.store, seeds=seeds, arms=chosen.arms.split(";"), jobs=chosen.jobs)))
