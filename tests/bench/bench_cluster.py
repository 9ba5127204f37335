"""A real cluster: the time between rounds with a Job per round and with pods that stay, and whole runs in pods.

It needs a cluster of this machine and an S3 server, as tests/cluster do. Run it:

    python -m tests.bench.bench_cluster rounds 8          # the tiny experiment, 8 rounds each way
    python -m tests.bench.bench_cluster whole coco 20     # COCO's models, 20 examples per client, layer-wise
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from lwfed import environment
from lwfed.launch.kubernetes.api import connect
from lwfed.launch.kubernetes.jobs import delete_run_jobs
from lwfed.launch.kubernetes.launcher import KubernetesLauncher
from lwfed.run import runs
from lwfed.run.events import Event, RoundDone
from lwfed.run.heartbeat import beating
from lwfed.run.runs import Options
from lwfed.run.tasks import RunTask
from lwfed.spec.load import load_spec
from lwfed.spec.run import RunSpec
from lwfed.steps.experiment import place_of, run_stages
from lwfed.steps.prepare import draft, prepare
from lwfed.store.opening import open_store
from lwfed.types.round_records import RoundRecord
from tests.bench import bench_whole, whole_data
from tests.cluster.bed import HOW_TO_GET, Bed, find_cluster, folders, namespace, pool
from tests.s3 import HOW_TO_GET as HOW_TO_GET_S3
from tests.s3 import Server, serving

WAYS: dict[str, dict[str, Any]] = {
    "a Job per round": {},
    "pods that stay": {"resident": "stage"},
}
BUCKET = "lwfed"
SERVER_PARTS = ("aggregate", "evaluate", "evaluate_clients")


@contextmanager
def cluster(folder: Path) -> Iterator[tuple[Bed, Server]]:
    """Has a namespace and an S3 server for a while.

    Raises:
        SystemExit: There is no cluster, or no program of an S3 server.
    """
    found = find_cluster()
    if found is None:
        raise SystemExit(f"skipped: {HOW_TO_GET}")
    with serving(folder / "s3", host=found.address) as server:
        if server is None:
            raise SystemExit(f"skipped: {HOW_TO_GET_S3}")
        server.make_bucket(BUCKET)
        with namespace(f"lwfed-bench-{uuid.uuid4().hex[:8]}") as made:
            assert made is not None
            os.environ |= {**server.environment(), "KUBECONFIG": str(made.kubeconfig)}
            yield replace(made, env=server.environment()), server


def run(bed: Bed, spec: RunSpec) -> tuple[str, list[RoundRecord], float]:
    """Runs an experiment on the cluster; returns its id, its rounds, and its seconds."""
    store, rounds, began = open_store(spec.store.uri), list[RoundRecord](), time.monotonic()
    drafted = prepare(draft(spec, store=store, options=Options()), store=store, emit=lambda _: None)

    def emit(event: Event) -> None:
        if isinstance(event, RoundDone):
            rounds.append(event.record)
            print(
                f"  {time.monotonic() - began:7.1f} s  stage {event.record.stage} round {event.record.round}",
                flush=True,
            )

    launcher = KubernetesLauncher(spec, store=store, run_id=drafted.run_id)
    try:
        with beating(store, drafted.run_id, every_s=spec.kubernetes.heartbeat_s, by="a measurement"):
            run_stages(drafted, launcher=launcher, store=store, emit=emit, cache=None)
            task = RunTask(store=store.uri, run_id=drafted.run_id, place=place_of(drafted, cache=None))
            launcher.server("finish", task, emit=emit)
    finally:
        launcher.close()
        with closing(connect(bed.namespace)) as api:
            delete_run_jobs(api, drafted.run_id)
    return drafted.run_id, rounds, time.monotonic() - began


def committed_at(server: Server, uri: str, key: str) -> dict[int, dict[str, float]]:
    """Returns when a stage's updates were committed, by the S3 server's clock: round -> client -> time."""
    prefix = f"{uri.removeprefix(f's3://{BUCKET}/')}/stages/{key}/rounds/"
    times: dict[int, dict[str, float]] = {}
    pages = server.client().get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=prefix)
    for entry in (entry for page in pages for entry in page.get("Contents", ())):
        match entry["Key"].removeprefix(prefix).split("/"):
            case [number, "updates", client, "update.json"]:
                times.setdefault(int(number), {})[client] = entry["LastModified"].timestamp()
    return times


def gaps(times: Mapping[int, Mapping[str, float]], rounds: Sequence[RoundRecord]) -> list[tuple[float, float]]:
    """Returns the seconds from a round's last update to the next round's first training step.

    A client's first step is its commit less its training; so what a client takes to commit counts as waiting.

    Args:
        times: Round -> client -> when its update was committed.
        rounds: The stage's rounds, in order.

    Returns:
        For each round but the first: all seconds, and those besides the server's aggregation and evaluation.
    """
    found = []
    for before, after in pairwise(rounds):
        first = min(times[after.round][client] - after.clients[client].wall_s for client in after.clients)
        between = first - max(times[before.round].values())
        found.append((between, between - sum(before.wall_s.get(part, 0.0) for part in SERVER_PARTS)))
    return found


def measure_rounds(bed: Bed, server: Server, *, rounds: int) -> None:
    """Prints the time between rounds of the tiny experiment, each way."""
    print(f"{'last update to next first step, s':<44}{'median':>8}{'shortest':>10}{'largest':>9}")
    for way, settings in WAYS.items():
        uri = f"s3://{BUCKET}/{uuid.uuid4().hex[:6]}"
        kubernetes = {"pools": [pool("clients", **settings)], "server": pool("server", **settings)}
        size = (f"stages.rounds=[{rounds},0]", "evaluation.every=10000", "store.keep_rounds=0")
        run_id, records, _ = run(bed, bed.spec(uri, *size, kubernetes=kubernetes))
        store = open_store(uri)
        noted = runs.read_run(store, run_id)
        stages, _ = runs.history(store, noted)
        key = runs.stage_key_of(noted, 1)
        assert key is not None
        found = gaps(committed_at(server, uri, key), records)
        for name, column in ((way, 0), ("    less aggregation and evaluation", 1)):
            took = [gap[column] for gap in found]
            print(f"{name:<44}{statistics.median(took):>8.2f}{min(took):>10.2f}{max(took):>9.2f}", flush=True)
        print("    the stage's start, s:", {name: round(s, 2) for name, s in stages[0].start_s.items()}, flush=True)


def measure_whole(bed: Bed, task: str, *, examples: int, folder: Path) -> None:
    """Prints what a whole layer-wise run of full-size models takes in pods that stay, two at a time."""
    row, size = bench_whole.ROWS[f"{task}-layerwise"], bench_whole.Size(examples)
    root, kept = folder / "data", folder / "kept"
    data = bench_whole.DATA if bench_whole.missing(bench_whole.DATA) is None else None
    whole_data.make(task, root, data=data, train=bench_whole.CLIENTS * examples, test=bench_whole.TEST[task])
    kept.mkdir()
    uri = f"s3://{BUCKET}/{uuid.uuid4().hex[:6]}"
    volumes = [
        *folders(),
        {"name": "data", "mount_path": str(root), "host_path": str(root)},
        {"name": "kept", "mount_path": str(kept), "host_path": str(kept), "read_only": False},
    ]
    pods = {"resident": "stage", "volumes": volumes}
    pools = {"pools": [pool("clients", parallel=2, cache=str(kept), **pods)], "server": pool("server", **pods)}
    settings = bed.spec(uri, kubernetes=pools).kubernetes.model_dump(mode="json")
    spec = load_spec(
        f"{task}-layerwise",
        overrides=[
            *bench_whole.overrides_of(row, size, data=root, store=folder), f"store.uri={uri}",
            "launch={kind: kubernetes, device: cpu}", f"kubernetes={json.dumps(settings)}",
        ],
    )  # fmt: skip
    _, rounds, seconds = run(bed, spec)
    print(
        f"{task}, layer-wise in pods that stay, {examples} examples per client: {seconds:.0f} s, {len(rounds)} rounds"
    )


def main(what: str = "rounds", *arguments: str) -> None:
    """Measures what the command line names."""
    environment.quiet()
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as scratch, cluster(Path(scratch)) as (bed, server):
        if what == "rounds":
            measure_rounds(bed, server, rounds=int(*arguments or ["8"]))
        else:
            task, examples = arguments
            measure_whole(bed, task, examples=int(examples), folder=Path(scratch))


if __name__ == "__main__":
    main(*sys.argv[1:])
