"""What the engine itself costs: rounds of a client that adds 1e-3 to every weight, beside a bare streaming mean.

50 M parameters, all of them sent by every client. The bare means, in numpy and in torch, sum up `array + 1e-3` of each
array of 1 M items, in float32, or like lwfed in float64: no client has weights of its own, and nothing is written,
hashed or checked. `copies` hands each client a copy of the weights to change in place, as training does, and sums in
float64. `stored` hashes, writes, reads and hashes again, as a store must that a killed run goes on from. `pfl` is
pfl-research, if it is installed (see `beside_pfl.py`). lwfed is measured with `store.updates: keep` and `memory`.

lwfed keeps the memory that it frees (see `lwfed/round/memory.py`), and so does `copies`; the ways named `mean_kept` and
`mean64_kept` are the means with that setting, without which the system clears the place of each `array + 1e-3`.

Each measurement is a process of its own. Run it: `python tests/bench/bench_engine.py`, or with ways and a number of
clients: `python tests/bench/bench_engine.py memory,mean,mean64 40`.
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
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lwfed import environment
from lwfed.federated.local import LocalResult
from lwfed.launch.in_process import InProcess
from lwfed.round import train_client
from lwfed.round.memory import reuse_memory
from lwfed.round.workbench import Workbench
from lwfed.run.runs import Options
from lwfed.spec.load import load_spec
from lwfed.steps.experiment import run_stages
from lwfed.steps.prepare import draft, prepare
from lwfed.store.opening import open_store
from tests.bench import beside_pfl
from tests.events import emit_to

AIM = 1.10
MEAN_AIM = 1.5
"""With updates in memory, against torch's mean."""
MEMORY_AIM = 1.05
ROUNDS = 4
ITEMS = 1_000_000
"""Of an array of the bare mean."""
WIDTH = 720
"""Of an encoder that, with all else, has 50 M parameters."""
PARAMETERS = 50_000_000


def engine(folder: Path, *, num_clients: int, updates: str = "keep") -> dict[str, Any]:
    """Runs rounds of lwfed, in this process; returns a round's seconds, on the wall and of CPU."""
    width = f"dim: {WIDTH}, hidden_dim: {4 * WIDTH}"
    config = f"{{vocab_size: 384, max_position_embeddings: 64, {width}, n_layers: 8, n_heads: 8}}"
    spec = load_spec(
        "shapes-end-to-end",
        overrides=[
            f"store.uri={folder}", f"store.updates={updates}", "tracking.uri=null",
            f"federation.num_clients={num_clients}", f"stages.rounds=[{ROUNDS},0,0,0]",
            f"data.shapes.train={8 * num_clients}", "data.shapes.test=16",
            "training.local_epochs=1", "evaluation.every=1000", f"model.encoders.text.config={config}",
            "model.encoders.text.blocks_per_stage=2", "model.encoders.image.config.depth=8",
        ],
    )  # fmt: skip
    bench = Workbench(open_store(spec.store.uri))
    seen: list[dict[str, Any]] = []
    marks: list[float] = []

    def note(kind: str, values: dict[str, Any]) -> None:
        if kind == "round":
            seen.append(values)
            marks.append(time.process_time())

    run = prepare(draft(spec, store=bench.store, options=Options()), store=bench.store, emit=lambda *_: None)
    train_client.train = _add  # type: ignore[attr-defined]  # the client of this measurement
    run_stages(
        run, launcher=InProcess(bench.store, in_memory=updates == "memory"), store=bench.store, cache=None,
        emit=emit_to(note),
    )  # fmt: skip
    rounds = [record["wall_s"] for record in seen[1:]]  # the first opens data and builds the model
    rounds[-1]["round"] -= rounds[-1].get("evaluate", 0.0)
    return {
        "round_s": statistics.median(wall["round"] for wall in rounds),
        "train_s": statistics.median(wall["train"] for wall in rounds),
        "aggregate_s": statistics.median(wall["aggregate"] for wall in rounds),
        "cpu_s": statistics.median(b - a for a, b in pairwise(marks[:-1])),  # the last one evaluates
        "parameters": seen[0]["clients"]["client-000"]["bytes_up"] / 4,
    }


def _add(groups: Sequence[tuple[Sequence[torch.nn.Parameter], Any]], **_: Any) -> LocalResult:
    """Trains nothing: adds 1e-3 to every parameter."""
    with torch.no_grad():
        torch._foreach_add_([p for members, _ in groups for p in members], 1e-3)
    return LocalResult(steps=1, loss=1.0, loss_first=1.0, wall_s=0.0, cost=None, first_rows=2)


def bare(folder: Path, *, num_clients: int) -> dict[str, Any]:
    """Averages in memory; returns seconds of a round."""
    return _rounds(num_clients, lambda _client, _number, array: array)


def in_memory(folder: Path, *, num_clients: int) -> dict[str, Any]:
    """Runs rounds of lwfed whose updates stay in memory; see `engine`."""
    return engine(folder, num_clients=num_clients, updates="memory")


def mean(folder: Path, *, num_clients: int, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    """Averages in memory with torch, in one thread; returns seconds of a round."""
    torch.set_num_threads(1)
    arrays = [torch.zeros(ITEMS) for _ in range(math.ceil(PARAMETERS / ITEMS))]
    seconds, spent = [], []
    for _ in range(ROUNDS):
        started, cpu = time.perf_counter(), time.process_time()
        total = [torch.zeros(ITEMS, dtype=dtype) for _ in arrays]
        for _ in range(num_clients):
            for number, array in enumerate(arrays):
                total[number].add_(array + 1e-3)
        arrays = [one.div_(num_clients).float() for one in total]
        seconds.append(time.perf_counter() - started)
        spent.append(time.process_time() - cpu)
    return {"round_s": statistics.median(seconds[1:]), "cpu_s": statistics.median(spent[1:])}


def mean64(folder: Path, *, num_clients: int) -> dict[str, Any]:
    """Averages in float64; see `mean`."""
    return mean(folder, num_clients=num_clients, dtype=torch.float64)


def mean_kept(folder: Path, *, num_clients: int) -> dict[str, Any]:
    """Averages in float32 and keeps the memory that it frees; see `mean`."""
    reuse_memory()
    return mean(folder, num_clients=num_clients)


def mean64_kept(folder: Path, *, num_clients: int) -> dict[str, Any]:
    """Averages in float64 and keeps the memory that it frees; see `mean`."""
    reuse_memory()
    return mean64(folder, num_clients=num_clients)


def copies(folder: Path, *, num_clients: int) -> dict[str, Any]:
    """Averages in float64, in one thread, copies of the weights that each client changes in place; see `mean`."""
    torch.set_num_threads(1)
    reuse_memory()
    arrays = [torch.zeros(ITEMS) for _ in range(math.ceil(PARAMETERS / ITEMS))]
    seconds, spent = [], []
    for _ in range(ROUNDS):
        started, cpu = time.perf_counter(), time.process_time()
        total = [torch.zeros(ITEMS, dtype=torch.float64) for _ in arrays]
        for _ in range(num_clients):
            own = [array.clone() for array in arrays]
            torch._foreach_add_(own, 1e-3)
            for number, array in enumerate(own):
                total[number].add_(array)
        arrays = [one.div_(num_clients).float() for one in total]
        seconds.append(time.perf_counter() - started)
        spent.append(time.process_time() - cpu)
    return {"round_s": statistics.median(seconds[1:]), "cpu_s": statistics.median(spent[1:])}


def pfl(folder: Path, *, num_clients: int) -> dict[str, Any]:
    """Runs rounds of pfl-research, whose clients do the same, in one thread; returns seconds of CPU of a round."""
    torch.set_num_threads(1)
    module = torch.nn.ParameterList(torch.zeros(ITEMS) for _ in range(math.ceil(PARAMETERS / ITEMS)))
    spent = beside_pfl.rounds(
        beside_pfl.Problem(module, None), num_clients=num_clients, num_rounds=ROUNDS, step=1e-3
    )  # fmt: skip
    return {"cpu_s": statistics.median(spent)}


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

    return _rounds(num_clients, through)


def _rounds(num_clients: int, sent: Callable[[int, int, np.ndarray], np.ndarray]) -> dict[str, Any]:
    arrays = [np.zeros(ITEMS, dtype=np.float32) for _ in range(math.ceil(PARAMETERS / ITEMS))]
    seconds, spent = [], []
    for _ in range(ROUNDS):
        started, cpu = time.perf_counter(), time.process_time()
        total = [np.zeros_like(array) for array in arrays]
        for client in range(num_clients):
            for number, array in enumerate(arrays):
                total[number] += sent(client, number, array + np.float32(1e-3))
        for array, mean in zip(arrays, total, strict=True):
            np.divide(mean, num_clients, out=array)
        seconds.append(time.perf_counter() - started)
        spent.append(time.process_time() - cpu)
    return {"round_s": statistics.median(seconds[1:]), "cpu_s": statistics.median(spent[1:])}


WAYS = {
    "engine": engine, "memory": in_memory, "bare": bare, "mean": mean, "mean64": mean64, "mean_kept": mean_kept,
    "mean64_kept": mean64_kept, "copies": copies, "pfl": pfl, "stored": stored,
}  # fmt: skip
COMPARED = (
    ("engine", "bare", AIM), ("engine", "stored", None), ("memory", "mean", MEAN_AIM), ("memory", "mean64", None),
    ("memory", "mean_kept", None), ("memory", "mean64_kept", None), ("memory", "copies", None),
    ("memory", "pfl", None), ("pfl", "mean", None),
)  # fmt: skip


def measured(way: str, *, num_clients: int) -> dict[str, Any]:
    """Measures one way in a fresh process."""
    command = [sys.executable, __file__, way, str(num_clients)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def table(found: dict[tuple[str, int], dict[str, Any]]) -> str:
    """Writes the figures for people."""
    lines = []
    for (way, clients), one in found.items():
        parts = "".join(f"   {name[:-2]} {one[name]:.2f} s" for name in ("train_s", "aggregate_s") if name in one)
        wall = f"{one['round_s']:.2f} s a round, " if "round_s" in one else ""
        lines.append(
            f"{way:11} {clients} clients   {wall}{one['cpu_s']:.2f} s of CPU   {one['peak_bytes'] / 1e6:.0f} MB{parts}"
        )
    most = max(clients for _, clients in found)
    many = {way: one for (way, clients), one in found.items() if clients == most}
    for ours, other, aim in COMPARED:
        if ours in many and other in many:
            times = many[ours]["cpu_s"] / many[other]["cpu_s"]
            lines.append(f"{ours} / {other} {times:.2f} in CPU time" + (f" (aim: {aim})" if aim else ""))
    for (way, clients), one in found.items():
        if way in many and clients < most:
            times = many[way]["peak_bytes"] / one["peak_bytes"]
            lines.append(f"peak memory of {way}, {most} clients / {clients} {times:.3f} (aim: {MEMORY_AIM})")
    return "\n".join(lines)


def measure() -> dict[tuple[str, int], dict[str, Any]]:
    """Measures all."""
    wanted = [
        *((way, 40) for way in WAYS), *((way, 10) for way in ("memory", "engine")),
    ]  # fmt: skip
    return measured_ways(wanted)


def measured_ways(wanted: Sequence[tuple[str, int]]) -> dict[tuple[str, int], dict[str, Any]]:
    """Measures some ways, each with a number of clients; without pfl-research, not that one, and says so."""
    why = beside_pfl.missing()
    if why is not None and any(way == "pfl" for way, _ in wanted):
        print(why)
        wanted = [(way, clients) for way, clients in wanted if way != "pfl"]
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
    elif "," in sys.argv[1]:
        clients = int(sys.argv[2])
        print(table(measured_ways([(way, clients) for way in sys.argv[1].split(",")])))
    else:
        with tempfile.TemporaryDirectory() as scratch:
            one = WAYS[sys.argv[1]](Path(scratch), num_clients=int(sys.argv[2]))
        one["peak_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        print(json.dumps(one))
