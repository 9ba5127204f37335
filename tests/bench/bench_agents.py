"""The time between rounds: from the last update of a round to the first training step of the next.

The tiny experiment in this process, in worker processes, and with an agent per client, in a folder or in MinIO; what
the server does between rounds is taken apart. Run it: `python -m tests.bench.bench_agents`.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest

from lwfed import environment
from lwfed.launch.launchers import make_launcher
from lwfed.run.events import Event
from lwfed.steps.experiment import run_stages
from lwfed.store.opening import open_store
from lwfed.store.protocol import Store
from tests.events import plain
from tests.s3 import serving
from tests.tiny import ONE_STAGE, prepared, tiny_spec

CLIENTS = ("client-000", "client-001")
KINDS = ("in_process", "subprocess", "agents")
AIM_S = 1.0
"""Most that may pass between rounds besides aggregation and evaluation, with a store that answers at once."""


@dataclass
class Times:
    """When things happened, by the system's clock.

    Attributes:
        steps: Times of training steps, with whether it was a client's first of a round.
        done: Round -> time at which its last update was there.
        server: Round -> seconds of aggregation and evaluation.
        memory: Resident bytes and open files of the agents after each round.
    """

    steps: list[tuple[float, bool]] = field(default_factory=list)
    done: dict[int, float] = field(default_factory=dict)
    server: dict[int, float] = field(default_factory=dict)
    memory: list[tuple[int, int]] = field(default_factory=list)

    def between(self) -> list[float]:
        """Seconds between rounds, from the second round on, without aggregation and evaluation."""
        gaps = []
        for number, last in sorted(self.done.items())[1:-1]:
            first = min(at for at, is_first in self.steps if is_first and at > last)
            gaps.append(first - last - self.server[number])
        return gaps


def measure(folder: Path, kind: str, *, rounds: int, uri: str | None = None) -> Times:
    """Runs the tiny experiment in one stage and returns when its rounds ended and began."""
    uri = uri or str(folder / kind)
    spec = tiny_spec(uri, *ONE_STAGE, f"stages.rounds=[{rounds}]", f"launch.kind={kind}", "evaluation.every=10000")
    store, times = open_store(uri), Times()
    with ExitStack() as stack:
        agents = [stack.enter_context(_agent(uri, client, folder, times)) for client in CLIENTS if kind == "agents"]
        run = prepared(spec, store=store)
        launcher = make_launcher(spec, store=store, run_id=run.run_id)
        stack.callback(launcher.close)

        def emit(event: Event) -> None:
            name, values = plain(event)
            if name == "client_step" and kind != "agents":
                times.steps.append((time.time(), values["step"] == 1))
            if name == "aggregating":
                times.done[values["round"]] = _last_update(store, values["round"])
            if name == "round":
                walls = values["wall_s"]
                times.server[values["round"]] = walls.get("aggregate", 0.0) + walls.get("evaluate", 0.0)
                times.memory.append(_sizes(agents))

        run_stages(run, launcher=launcher, store=store, emit=emit, cache=folder / "cache")
    return times


@contextmanager
def _agent(uri: str, client: str, folder: Path, times: Times) -> Iterator[subprocess.Popen[str]]:
    """Has an agent for a while, whose steps are noted."""
    policy = folder / f"{client}.yaml"
    policy.write_text(f"cache: {folder / 'kept' / client}\n")
    command = [sys.executable, "-m", "lwfed", "agent", "--store", uri, "--client", client, "--policy", policy, "--json"]
    process = subprocess.Popen(
        [str(word) for word in command], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)},
    )  # fmt: skip

    def listen() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            event = json.loads(line)
            if event["event"] == "client_step":
                times.steps.append((time.time(), event["values"]["step"] == 1))

    thread = threading.Thread(target=listen)
    thread.start()
    try:
        yield process
    finally:
        process.terminate()
        process.wait()
        thread.join()
        assert process.stdout is not None
        process.stdout.close()


def _last_update(store: Store, server_round: int) -> float:
    """When a round's last update was there; with S3, now: it was seen a moment ago."""
    root = getattr(store, "root", None)
    if root is None:
        return time.time()
    return max(p.stat().st_mtime for p in root.glob(f"stages/*/rounds/{server_round:03d}/updates/*/update.json"))


def _sizes(agents: Sequence[subprocess.Popen[str]]) -> tuple[int, int]:
    """Resident bytes, and open files and threads, of all agents."""
    found = [psutil.Process(agent.pid) for agent in agents]
    return sum(one.memory_info().rss for one in found), sum(one.num_fds() + one.num_threads() for one in found)


def _row(name: str, gaps: Sequence[float]) -> str:
    return f"{name:<22}{statistics.median(gaps):>10.3f}{max(gaps):>10.3f}   {len(gaps)} rounds"


def _rows(folder: Path, *, rounds: int, kinds: Sequence[str] = KINDS) -> dict[str, Any]:
    print(f"{'between rounds, s':<22}{'median':>10}{'largest':>10}", flush=True)
    found = {}
    for kind in kinds:
        found[kind] = measure(folder, kind, rounds=rounds)
        print(_row(kind, found[kind].between()), flush=True)
    return found


@pytest.mark.bench
def test_the_time_between_rounds_is_short(tmp_path: Path) -> None:
    found = _rows(tmp_path, rounds=8)
    assert statistics.median(found["agents"].between()) < AIM_S


@pytest.mark.bench
def test_an_agents_memory_and_handles_are_flat(tmp_path: Path) -> None:
    """Resident bytes grow by less than 2 % from the 50th to the 300th round, and handles not at all."""
    memory = measure(tmp_path, "agents", rounds=300).memory
    early, late = memory[49], memory[-1]
    print(f"agents' memory after round 50: {early[0] / 1e6:.1f} MB, {early[1]} handles; after 300: "
          f"{late[0] / 1e6:.1f} MB, {late[1]} handles")  # fmt: skip
    assert late[0] < 1.02 * early[0] and late[1] <= early[1]


if __name__ == "__main__":
    environment.quiet()
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 8
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as scratch:
        found = _rows(Path(scratch), rounds=rounds, kinds=sys.argv[2].split(",") if len(sys.argv) > 2 else KINDS)
        if "agents" in found:
            print(
                [found["agents"].memory[n] for n in range(0, rounds, max(1, rounds // 10))], found["agents"].memory[-1]
            )
        with serving(Path(scratch) / "s3") as server:
            if server is not None:
                server.make_bucket("lwfed")
                os.environ.update(server.environment())
                times = measure(Path(scratch) / "via", "agents", rounds=rounds, uri="s3://lwfed/bench")
                print(_row("agents, MinIO", times.between()))
