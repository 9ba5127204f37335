"""A round of a model of 1 GB with six clients that train nothing: seconds per GB and client, and the server's memory.

One client after another reads the model as a round's client does and commits an update as large as the model; then a
process of its own, the server, aggregates what the store has, with two of the clients and with all. A step's time is
left out, and nothing else: every byte is written, read and hashed. NVFlare's figures for 3.35 GB and six clients, with
its local training in them, are published (examples/advanced/tensor-stream, 2025-11).
Run it: `python -m tests.bench.bench_large`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from lwfed import environment
from lwfed.models.build import tensor_specs
from lwfed.params import select
from lwfed.round.aggregate_round import aggregate_round
from lwfed.round.download import fetch_model
from lwfed.round.train_client import Trained, commit
from lwfed.round.workbench import Workbench
from lwfed.store import paths
from lwfed.store.opening import open_store
from lwfed.types.clients import client_ids
from tests.tiny import ONE_STAGE, begun, client_task, round_task

CLIENTS, FEW = 6, 2
WIDTH, DEPTH = 1024, 20
"""A ViT with 12 x WIDTH x WIDTH parameters per block: 1.0 GB."""
PUBLISHED = "NVFlare, 3.35 GB x 6: 158 s per round, 7.9 s per GB and client; server 82 to 138 GiB"


def measure(folder: Path, *, width: int = WIDTH, depth: int = DEPTH) -> dict[str, Any]:
    """Measures a round; returns the parts' figures, and the model's bytes.

    Args:
        folder: Where the store goes.
        width: Width of the image encoder, a multiple of 16.
        depth: Number of its blocks.
    """
    image = f"embed_dim: {width}, depth: {depth}, num_heads: 16, img_size: 16, patch_size: 8"
    bench, stage, _ = begun(
        folder, *ONE_STAGE, "strategy=end_to_end", f"federation.num_clients={CLIENTS}", "data.shapes.train=96",
        f"model.encoders.image.config={{{image}}}", f"model.encoders.image.blocks_per_stage={depth}",
        "evaluation.every=1000", "training.threads=1",
    )  # fmt: skip
    clients = client_ids(CLIENTS)
    done = _in_process(folder, stage.key, "clients", *clients)
    servers = {}
    for count in (FEW, CLIENTS):
        kept = {}
        for client in clients[:count]:
            update = bench.store.read_ref(paths.update(stage.key, 1, client)) or {}
            kept[client] = {name: update[name] for name in ("digest", "num_examples", "metrics")}
        bench.store.write_ref(paths.accepted(stage.key, 1), {"clients": kept, "failed": {}})
        bench.store.delete(paths.round_checkpoint(stage.key, 1))
        servers[count] = _in_process(folder, stage.key, "server")
    return {"nbytes": done[0]["nbytes"], "clients": done, "servers": servers}


def _in_process(folder: Path, key: str, part: str, *names: str) -> Any:
    command = [sys.executable, "-m", "tests.bench.bench_large", part, str(folder), key, *names]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def be_client(bench: Workbench, key: str, client: str) -> dict[str, Any]:
    """Reads the model and commits an update that differs from it."""
    ctx = bench.client(client_task(bench, bench.stage(key), client))
    skeleton = bench.skeleton(key)
    wall, cpu = time.perf_counter(), time.process_time()
    model = fetch_model(ctx, ctx.start())
    read_s, read_cpu_s = time.perf_counter() - wall, time.process_time() - cpu
    number = int(client.rpartition("-")[2]) + 1
    with torch.no_grad():
        for tensor in model.tensors.values():
            if tensor.is_floating_point():
                tensor.mul_(1 + number / 1024)
    specs = tensor_specs(skeleton)
    tensors = select(model.tensors, units=ctx.work.trained)
    metrics = {"num_examples": 16, "steps": 1, "loss": 1.0}
    wall, cpu = time.perf_counter(), time.process_time()
    update = commit(
        Trained(
            ctx=ctx,
            specs={name: specs[name] for name in tensors},
            tensors=tensors,
            start=lambda unit: {},
            num_examples=16,
            metrics=metrics,
        )
    ).update
    return {
        "read_s": read_s, "read_cpu_s": read_cpu_s, "write_s": time.perf_counter() - wall,
        "write_cpu_s": time.process_time() - cpu, "nbytes": update["metrics"]["bytes_up"],
    }  # fmt: skip


def be_server(bench: Workbench, key: str) -> dict[str, Any]:
    """Aggregates the accepted updates."""
    stage = bench.stage(key)
    bench.skeleton(key)
    base = peak_bytes()
    wall, cpu = time.perf_counter(), time.process_time()
    aggregate_round(round_task(bench, stage), bench=bench)
    return {"wall_s": time.perf_counter() - wall, "cpu_s": time.process_time() - cpu, "peak": peak_bytes() - base}


def peak_bytes() -> int:
    """Returns this process's peak resident memory."""
    text = Path("/proc/self/status").read_text(encoding="ascii")
    return int(text.partition("VmHWM:")[2].split()[0]) * 1024


def table(found: dict[str, Any]) -> str:
    """Writes the figures for people."""
    gigabytes = found["nbytes"] / 1e9
    server = found["servers"][CLIENTS]
    parts = {
        kind: {
            "read": sum(client[f"read_{kind}"] for client in found["clients"]),
            "write": sum(client[f"write_{kind}"] for client in found["clients"]),
            "server": server["wall_s" if kind == "s" else "cpu_s"],
        }
        for kind in ("s", "cpu_s")
    }
    lines = [f"{gigabytes:.2f} GB x {CLIENTS} clients; load {os.getloadavg()[0]:.1f}"]
    for kind, what in (("s", "wall"), ("cpu_s", "CPU")):
        each = {part: seconds / gigabytes / CLIENTS for part, seconds in parts[kind].items()}
        lines.append(
            f"  {what}: {sum(parts[kind].values()):.1f} s per round; per GB and client {sum(each.values()):.2f} s: "
            + ", ".join(f"{part} {seconds:.2f}" for part, seconds in each.items())
        )
    memory = ", ".join(f"{item['peak'] / 1e6:.0f} MB with {count} clients" for count, item in found["servers"].items())
    lines += [f"  server's memory beyond its start: {memory}", f"  published: {PUBLISHED}"]
    return "\n".join(lines)


@pytest.mark.bench
def test_the_servers_memory_does_not_grow_with_its_clients(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = measure(tmp_path, width=512, depth=10)
    with capsys.disabled():
        print("\n" + table(found))
    few, many = (found["servers"][count]["peak"] for count in (FEW, CLIENTS))
    assert many < few + 0.1 * found["nbytes"]


def main(arguments: list[str]) -> None:
    """Measures a round, or is one of its processes: `clients FOLDER KEY CLIENT...`, `server FOLDER KEY`."""
    environment.quiet()
    if not arguments:
        with tempfile.TemporaryDirectory() as scratch:
            print(table(measure(Path(scratch))))
        return
    part, folder, key, *names = arguments
    bench = Workbench(open_store(folder))
    found = be_server(bench, key) if part == "server" else [be_client(bench, key, client) for client in names]
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1:])
