"""What a store, a coordinator and many agents cost, measured in small, and a round of 1,000 of 10,000 from these costs.

Run it: `python -m tests.bench.bench_scale [store] [round] [agents] [outlook]`; without arguments the outlook alone,
which measures nothing. CPU seconds are given, since they say the same on a busy machine. docs/scale.md has the figures.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from lwfed.agent.beating import BEAT_S, RESTS, Beats
from lwfed.agent.wanted import Wanted
from lwfed.run.agents import Wants
from lwfed.store import paths
from lwfed.store.opening import open_store
from lwfed.store.protocol import Store
from lwfed.types.canonical import by_line
from tests.bench.coordinating import measure_rounds
from tests.bench.scaling import (
    Costs,
    Federation,
    Load,
    api_requests,
    coordinator_s,
    look_s,
    moved_gb,
    play,
    sum_s,
)
from tests.s3 import HOW_TO_GET, Server, serving

BUCKET = "scale"
BEAT = {"agent": "client-00000", "process": "0" * 32, "beat": 12, "host": "node", "call": "0" * 16, "note": "x" * 300}


def server_cpu_s(server: Server) -> float:
    """Returns the CPU seconds that a server's process has used."""
    assert server.process is not None
    fields = Path(f"/proc/{server.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measure_store(store: Store, *, spent: Callable[[], float]) -> list[tuple[str, float, float, float]]:
    """Returns request -> median milliseconds, and milliseconds of CPU of the client and of the server, per request."""
    store.write_ref("a.json", BEAT)
    seen = store.read_ref_if_changed("a.json", None)
    mark = None if seen is None else seen.mark
    for number in range(1000):
        store.write_ref(f"many/{number:04d}/update.json", BEAT)
    keys = [f"many/{number:04d}/update.json" for number in range(1000)]
    work: list[tuple[str, int, Callable[[int], object]]] = [
        ("PUT, 0.5 kB", 200, lambda number: store.write_ref(f"put/{number % 20}.json", BEAT)),
        ("GET, 0.5 kB", 300, lambda _: store.read_ref("a.json")),
        ("GET if changed, and it did not", 400, lambda _: store.read_ref_if_changed("a.json", mark)),
        ("LIST of 1,000 keys", 5, lambda _: list(store.list("many/"))),
        ("DELETE of 1,000 keys", 1, lambda _: store.delete(*keys)),
    ]
    rows = []
    for name, count, ask in work:
        took, cpu, served = list[float](), time.process_time(), spent()
        for number in range(count):
            began = time.perf_counter()
            ask(number)
            took.append(time.perf_counter() - began)
        cpu, served = time.process_time() - cpu, spent() - served
        rows.append((name, 1e3 * statistics.median(took), 1e3 * cpu / count, 1e3 * served / count))
    return rows


def poll_and_beat(uri: str, *, agents: int, poll_s: float, seconds: float) -> Counter[str]:
    """Lets threads poll what a run wants and beat, as agents that wait do; returns the requests that they sent."""
    beats_s = max(BEAT_S, RESTS * poll_s)
    store, sent, over, lock = open_store(uri), Counter[str](), threading.Event(), threading.Lock()
    store.write_ref(paths.wants("r"), Wants(run_id="r", poll_s=poll_s).to_values())

    def note(request: object, operation_name: str, **_: object) -> None:
        with lock:
            sent[operation_name] += 1

    def agent(number: int) -> None:
        import random

        draw, name = random.Random(number), f"client-{number:05d}"
        wanted, beats = Wanted(store, "r"), None
        look_at, ends_at = time.monotonic() + draw.uniform(0, poll_s), time.monotonic() + seconds
        beat_at = time.monotonic() + draw.uniform(0, beats_s)
        while time.monotonic() < ends_at and not over.is_set():
            if time.monotonic() >= look_at:
                wanted.look()
                look_at = time.monotonic() + wanted.poll_s * draw.uniform(0.7, 1.3)
                if beats is not None:
                    beats.pace(wanted.poll_s)
            if beats is None and time.monotonic() >= beat_at:
                beats = Beats(store, "r", name, alone=True)
            elif beats is not None and beats.due_in_s == 0:
                beats.write()
            due_at = look_at if beats is None else min(look_at, time.monotonic() + beats.due_in_s)
            over.wait(max(0.01, min(due_at, beat_at if beats is None else due_at) - time.monotonic()))

    events = store.connection.client.meta.events  # type: ignore[attr-defined]  # a bucket's
    events.register_first("request-created.s3", note)
    threads = [threading.Thread(target=agent, args=(number,), daemon=True) for number in range(agents)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(seconds + 30)
    over.set()
    events.unregister("request-created.s3", note)
    return sent


def compare_agents(server: Server, *, agents: int, poll_s: float, seconds: int) -> dict[str, tuple[float, float]]:
    """Returns requests per second, and the server's cores: measured, and simulated with the same settings."""
    before = server_cpu_s(server)
    sent = poll_and_beat(f"s3://{BUCKET}/agents", agents=agents, poll_s=poll_s, seconds=seconds)
    cores = (server_cpu_s(server) - before) / seconds
    quiet = Federation(agents=agents, known=agents, cohort=0, poll_s=poll_s)
    load = play(quiet, seconds=seconds, call=False)
    watching = load.rate("304") - agents / poll_s  # of heartbeats, which these threads do not watch
    simulated = load.rate() - watching
    return {
        "requests per second": (sum(sent.values()) / seconds, simulated),
        "PUT per second": (sent["PutObject"] / seconds, load.rate("PUT")),
        "cores of the server": (cores, load.cores(Costs()) - watching * Costs().server_s["304"]),
    }


def outlook(federation: Federation, costs: Costs) -> list[str]:
    """Returns what a round of a federation takes, line by line."""
    idle, work = play(federation, seconds=60, call=False), play(federation, seconds=60, call=True)
    looks, every = look_s(federation.cohort, costs)
    lines = [
        f"{federation.agents:,} agents, {federation.cohort:,} a round, {federation.update_mb:g} MB an update",
        f"  waiting: {_load(idle, costs, 0, 60)}",
        f"  of these polls and looks at the heartbeat {idle.rate('304'):,.0f}, beats {2 * idle.rate('PUT'):,.0f}",
        f"  in a round, seconds 15 to 45: {_load(work, costs, 15, 45)}",
        f"  the call is seen after {statistics.median(work.noticed_s):.1f} s, by the last {max(work.noticed_s):.1f} s",
        f"  a look at the beats takes {looks:.1f} s, one every {every:.1f} s",
        *(f"  coordinator, {name}: {seconds:.1f} s" for name, seconds in coordinator_s(federation, costs).items()),
    ]
    for fan_in in (None, 100, 32, 10):
        seconds, servers = sum_s(federation, costs, fan_in=fan_in)
        lines.append(f"  summed by {'one server' if fan_in is None else f'a tree, fan-in {fan_in}'}: "
                     f"{seconds:.0f} s, {servers} server(s)")  # fmt: skip
    lines += [f"  {name}: {gb:.1f} GB" for name, gb in moved_gb(federation, costs).items()]
    for resident in (False, True):
        found = api_requests(federation.cohort, rounds=15, resident=resident)
        told = ", ".join(f"{count:,.0f} {name}" for name, count in found.items())
        lines.append(f"  15 rounds, {'pods that stay' if resident else 'Jobs per round'}: at least {told}")
    return lines


def _load(load: Load, costs: Costs, begin: int, end: int) -> str:
    rate, puts = load.rate(begin=begin, end=end), load.rate("PUT", begin=begin, end=end)
    return f"{rate:,.0f} requests/s, {puts:,.0f} of them PUT, {load.cores(costs, begin=begin, end=end):.1f} cores"


def wants_bytes(clients: int) -> int:
    """Returns the length of what a run wants if it asks as many clients."""
    names = [f"client-{number:05d}" for number in range(clients)]
    return len(by_line(Wants(run_id="r", call="0" * 16, work={name: [name] for name in names}).to_values()))


@pytest.mark.bench
def test_the_simulation_agrees_with_agents_that_poll_and_beat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(tmp_path) as server:
        if server is None or server.kind != "minio":
            pytest.skip("needs MinIO: `.ci/minio` builds it")
        for name, value in server.environment().items():
            monkeypatch.setenv(name, value)
        server.make_bucket(BUCKET)
        found = compare_agents(server, agents=100, poll_s=4.0, seconds=60)
    print("\n" + "\n".join(f"{name}: measured {a:.2f}, simulated {b:.2f}" for name, (a, b) in found.items()))
    measured, simulated = found["requests per second"]
    assert 0.8 * simulated < measured < 1.1 * simulated


def main(parts: list[str]) -> None:
    """Measures and prints."""
    if {"store", "agents"} & set(parts):
        with tempfile.TemporaryDirectory() as scratch, serving(Path(scratch)) as server:
            assert server is not None, HOW_TO_GET
            os.environ.update(server.environment())
            server.make_bucket(BUCKET)
            _ask_server(server, parts)
    if "round" in parts:
        with tempfile.TemporaryDirectory() as scratch:
            for clients, cohort in ((1000, 100), (10_000, 1000)):
                found = measure_rounds(f"{scratch}/{clients}", clients=clients, cohort=cohort)
                print(f"{cohort} of {clients}: prepared in {found.prepare_s:.1f} s of CPU; bytes: {found.sizes}")
                print(
                    "\n".join(
                        f"  {p:10} {s:7.2f} s {dict(found.requests.get(p, {}))}" for p, s in found.seconds.items()
                    )
                )
    if "outlook" in parts or not parts:
        print(f"a call of 1,000: {wants_bytes(1000)} bytes, of 10,000: {wants_bytes(10_000)} bytes")
        print("\n".join(outlook(Federation(), Costs())))


def _ask_server(server: Server, parts: list[str]) -> None:
    if "store" in parts:
        for row in measure_store(open_store(f"s3://{BUCKET}/store"), spent=lambda: server_cpu_s(server)):
            print("{:32} {:8.2f} ms, {:7.2f} ms of CPU here, {:7.2f} ms of the server's".format(*row))
    if "agents" in parts:
        for name, (measured, simulated) in compare_agents(server, agents=100, poll_s=4.0, seconds=60).items():
            print(f"{name}: measured {measured:.2f}, simulated {simulated:.2f}")


if __name__ == "__main__":
    main(sys.argv[1:])
