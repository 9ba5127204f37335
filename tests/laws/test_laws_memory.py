"""Laws of memory: it grows neither over the rounds nor with the number of clients."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import weakref
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from torch import Tensor

from lwfed.federated.aggregator import fold
from lwfed.federated.aggregators.weighted_mean import WeightedMean
from tests.aggregating import updates_of
from tests.tiny import run_tiny

MIB = 2**20


def live_tensors() -> tuple[int, int]:
    """Number and bytes of all tensors that this process holds."""
    gc.collect()
    storages: dict[int, int] = {}
    for item in gc.get_objects():
        if type(item) in (Tensor, torch.nn.Parameter) and item.device.type == "cpu":
            storages[item.untyped_storage().data_ptr()] = item.untyped_storage().nbytes()
    return len(storages), sum(storages.values())


def test_no_tensor_is_left_behind_by_a_round(tmp_path: Path) -> None:
    """Measured: every live tensor of the process at the end of each round. Exactly flat within a stage."""
    held: dict[int, tuple[int, int]] = {}

    def emit(kind: str, values: dict[str, Any]) -> None:
        if kind == "round":
            held[values["global_round"]] = live_tensors()

    run_tiny(tmp_path, "stages.rounds=[4,4]", "evaluation.every=1", emit=emit)
    assert len(held) == 8
    assert len({held[r] for r in (2, 3, 4)}) == 1, held
    assert len({held[r] for r in (6, 7, 8)}) == 1, held


@pytest.mark.slow
def test_resident_memory_is_flat_over_rounds(tmp_path: Path) -> None:
    """Measured: resident memory of this process (psutil), after round 5 and after round 30."""
    resident: dict[int, int] = {}

    def emit(kind: str, values: dict[str, Any]) -> None:
        if kind == "round":
            gc.collect()
            resident[values["global_round"]] = psutil.Process().memory_info().rss

    run_tiny(tmp_path, "stages.rounds=[30,0]", "evaluation.every=5", emit=emit)
    assert resident[30] - resident[5] < 8 * MIB, {r: size // MIB for r, size in resident.items()}


@pytest.mark.parametrize("clients", [2, 40])
def test_the_mean_holds_one_tensor_of_one_client_at_a_time(clients: int) -> None:
    """Measured: how many clients' tensors are alive at once, by weak references."""
    alive, most = 0, 0

    def gone() -> None:
        nonlocal alive
        alive -= 1

    def read(name: str) -> Tensor:
        nonlocal alive, most
        tensor = torch.ones(1000)
        alive += 1
        most = max(most, alive)
        weakref.finalize(tensor, gone)
        return tensor

    readers = {f"client-{n:03d}": read for n in range(clients)}
    state = fold(WeightedMean(), updates_of(readers, dict.fromkeys(readers, 3)), names=["w"])["w"]
    assert torch.equal(WeightedMean().finish(state, name="w"), torch.ones(1000, dtype=torch.float64))
    assert most <= 3, "the first gives its type, one is added, one is being read"


AGGREGATE = """
import json, resource, shutil, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from lwfed.round import aggregate_round as server
from lwfed.round import runtime
from lwfed.round.train_client import train_client
from lwfed.store import paths
from tests.aggregating import updates_of
from tests.tiny import begun, client_task, round_task

runtime.reuse_memory = lambda: False
root, clients = Path(sys.argv[1]), int(sys.argv[2])
bench, stage, _ = begun(
    root, "federation.num_clients=2", "model.projection.hidden=1400", "evaluation.every=99", "training.local_steps=1"
)
update = train_client(client_task(bench, stage, "client-000"), bench=bench)
folder = root / paths.updates(stage.key, 1, "client-000")
accepted = {}
for n in range(clients):
    client = f"client-{n:03d}"
    target = root / paths.updates(stage.key, 1, client)
    if target != folder:
        target.mkdir(parents=True)
        for file in folder.glob("*.safetensors"):
            (target / file.name).hardlink_to(file)
        bench.store.write_ref(paths.update(stage.key, 1, client), {**update, "client": client})
    accepted[client] = {"digest": update["digest"], "num_examples": n + 1, "metrics": update["metrics"]}
bench.store.write_ref(paths.accepted(stage.key, 1), {"clients": accepted, "failed": {}})
Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
before = int(next(l for l in open("/proc/self/status") if l.startswith("VmRSS")).split()[1]) * 1024
server.parallel_map = lambda work, items: [work(item) for item in items]  # else the peak depends on which units overlap
server.aggregate_round(round_task(bench, stage), bench=bench)
peak = int(next(l for l in open("/proc/self/status") if l.startswith("VmHWM")).split()[1]) * 1024
size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
print(json.dumps({"grown": peak - before, "update": size}))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak is read from Linux's /proc")
def test_the_servers_memory_is_flat_over_clients(tmp_path: Path) -> None:
    """Measured: how far an aggregating process's resident memory rises above its start, for 4 and 40 clients.

    Freed memory is returned at once, so that what is counted is in use, and units are aggregated one after
    another, so that the peak does not depend on timing. Only the updates' manifests grow, by a few tens of kB each.
    """
    returning = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0", "MALLOC_ARENA_MAX": "1"}
    grown = {}
    for clients in (4, 40):
        told = subprocess.run(
            [sys.executable, "-c", AGGREGATE, str(tmp_path / str(clients)), str(clients)],
            check=True, capture_output=True, text=True, cwd=Path(__file__).parents[2], env=os.environ | returning,
        )  # fmt: skip
        values = json.loads(told.stdout.splitlines()[-1])
        grown[clients] = values["grown"]
        assert values["update"] > 6 * MIB
    assert grown[40] - grown[4] < values["update"] / 2, "36 more clients take less than half an update"
