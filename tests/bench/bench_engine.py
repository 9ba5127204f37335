"""What the engine itself costs: rounds of a client that adds 1e-3 to every weight, beside a bare streaming mean.

50 M parameters, all of them sent by every client. The bare mean, in numpy, adds the same to every array and sums it up:
nothing is written, hashed or checked. A second one hashes, writes, reads and hashes again, as a store must that a
killed run goes on from. Each measurement is a process of its own. Run it: `python tests/bench/bench_engine.py`.
"""

from __future__ import annotations

import hashlib
import json
import math
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lwfed import environment
from lwfed.federated.local import LocalResult
from lwfed.launch.in_process import InProcess
from lwfed.round import train_client
from lwfed.round.workbench import Workbench
from lwfed.run.runs import Options
from lwfed.spec.load import load_spec
from lwfed.steps.experiment import run_stages
from lwfed.steps.prepare import draft, prepare
from lwfed.store.opening import open_store
from tests.events import emit_to

AIM = 1.10
MEMORY_AIM = 1.05
ROUNDS = 4
ITEMS = 1_000_000
"""Of an array of the bare mean."""
WIDTH = 720
"""Of an encoder that, with all else, has 50 M parameters."""
PARAMETERS = 50_000_000


def engine(folder: Path, *, num_clients: int) -> dict[str, Any]:
    """Runs rounds of lwfed, in this process; returns seconds of a round, the parameters and the peak memory."""
    width = f"dim: {WIDTH}, hidden_dim: {4 * WIDTH}"
    config = f"{{vocab_size: 384, max_position_embeddings: 64, {width}, n_layers: 8, n_heads: 8}}"
    spec = load_spec(
        "shapes-end-to-end",
        overrides=[
            f"store.uri={folder}", "tracking.uri=null", f"federation.num_clients={num_clients}",
            f"stages.rounds=[{ROUNDS},0,0,0]", f"data.shapes.train={8 * num_clients}", "data.shapes.test=16",
            "training.local_epochs=1", "evaluation.every=1000", f"model.encoders.text.config={config}",
            "model.encoders.text.blocks_per_stage=2", "model.encoders.image.config.depth=8",
        ],
    )  # fmt: skip
    bench = Workbench(open_store(spec.store.uri))
    seen: list[dict[str, Any]] = []
    run = prepare(draft(spec, store=bench.store, options=Options()), store=bench.store, emit=lambda *_: None)
    train_client.train = _add  # type: ignore[attr-defined]  # the client of this measurement
    run_stages(
        run, launcher=InProcess(bench.store), store=bench.store, cache=None,
        emit=emit_to(lambda kind, values: seen.append(values) if kind == "round" else None),
    )  # fmt: skip
    rounds = [record["wall_s"] for record in seen[1:]]  # the first opens data and builds the model
    rounds[-1]["round"] -= rounds[-1].get("evaluate", 0.0)
    return {
        "round_s": statistics.median(wall["round"] for wall in rounds),
        "train_s": statistics.median(wall["train"] for wall in rounds),
        "aggregate_s": statistics.median(wall["aggregate"] for wall in rounds),
        "parameters": seen[0]["clients"]["client-000"]["bytes_up"] / 4,
    }


def _add(groups: Sequence[tuple[Sequence[torch.nn.Parameter], Any]], **_: Any) -> LocalResult:
    """Trains nothing: adds 1e-3 to every parameter."""
    with torch.no_grad():
        torch._foreach_add_([p for members, _ in groups for p in members], 1e-3)
    return LocalResult(steps=1, loss=1.0, loss_first=1.0, wall_s=0.0, cost=None, first_rows=2)


def bare(folder: Path, *, num_clients: int) -> dict[str, Any]:
    """Averages in memory; returns seconds of a round."""
    return {"round_s": _rounds(num_clients, lambda _client, _number, array: array)}


def stored(folder: Path, *, num_clients: int) -> dict[str, Any]:
    """Averages what each client wrote: hashed, written, read and hashed again; returns seconds of a round."""

    def through(client: int, number: int, array: np.ndarray) -> np.ndarray:
        digest = hashlib.sha256(array.data.cast("B")).digest()
        path = folder / f"{client}-{number}"
        path.write_bytes(array.data.cast("B"))
        back = np.fromfile(path, dtype=np.float32)
        path.unlink()
        assert hashlib.sha256(back.data.cast("B")).digest() == digest
        return back

    return {"round_s": _rounds(num_clients, through)}


def _rounds(num_clients: int, sent: Callable[[int, int, np.ndarray], np.ndarray]) -> float:
    arrays = [np.zeros(ITEMS, dtype=np.float32) for _ in range(math.ceil(PARAMETERS / ITEMS))]
    seconds = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        total = [np.zeros_like(array) for array in arrays]
        for client in range(num_clients):
            for number, array in enumerate(arrays):
                total[number] += sent(client, number, array + np.float32(1e-3))
        for array, mean in zip(arrays, total, strict=True):
            np.divide(mean, num_clients, out=array)
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds[1:])


WAYS = {"engine": engine, "bare": bare, "stored": stored}


def measured(way: str, *, num_clients: int) -> dict[str, Any]:
    """Measures one way in a fresh process."""
    command = [sys.executable, __file__, way, str(num_clients)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def table(found: dict[tuple[str, int], dict[str, Any]]) -> str:
    """Writes the figures for people."""
    lines = []
    for (way, clients), one in found.items():
        parts = "".join(f"   {name[:-2]} {one[name]:.2f} s" for name in ("train_s", "aggregate_s") if name in one)
        lines.append(
            f"{way:8} {clients} clients   {one['round_s']:.2f} s a round   {one['peak_bytes'] / 1e6:.0f} MB{parts}"
        )
    many = {way: one for (way, clients), one in found.items() if clients == 40}
    few = found["engine", 10]
    lines += [
        f"lwfed / bare mean {many['engine']['round_s'] / many['bare']['round_s']:.2f} (aim: {AIM}), "
        f"lwfed / bare mean with a store {many['engine']['round_s'] / many['stored']['round_s']:.2f}",
        f"memory, 40 clients / 10 {many['engine']['peak_bytes'] / few['peak_bytes']:.3f} (aim: {MEMORY_AIM})",
    ]
    return "\n".join(lines)


def measure() -> dict[tuple[str, int], dict[str, Any]]:
    """Measures all."""
    wanted = [("bare", 40), ("stored", 40), ("engine", 40), ("engine", 10)]
    return {(way, clients): measured(way, num_clients=clients) for way, clients in wanted}


@pytest.mark.bench
def test_engine(capsys: pytest.CaptureFixture[str]) -> None:
    found = measure()
    with capsys.disabled():
        print("\n" + table(found))


if __name__ == "__main__":
    environment.quiet()
    if len(sys.argv) == 1:
        print(table(measure()))
    else:
        with tempfile.TemporaryDirectory() as scratch:
            one = WAYS[sys.argv[1]](Path(scratch), num_clients=int(sys.argv[2]))
        one["peak_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        print(json.dumps(one))
