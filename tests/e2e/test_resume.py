"""A run that ends early, however it ends, goes on under its id to the result it would have had."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.e2e import killer
from tests.e2e.command import (
    Ended,
    committed,
    environment,
    processes_of,
    start,
    succeed,
    together,
    until,
    wait,
    write_spec,
)

pytestmark = pytest.mark.slow


def test_killed_at_many_writes_it_ends_in_the_same_digest(trained: tuple[Path, Ended], tmp_path: Path) -> None:
    """Dozens of kills, each before a change of the store: between files, and between a file and its commit."""
    folders = [tmp_path / seed for seed in ("1", "2")]
    for folder, driven in zip(folders, together(*(partial(_drive, folder) for folder in folders)), strict=True):
        assert driven.code == 0, driven.out + driven.err + (folder / killer.OUTPUT).read_text()
        forks = [json.loads(line) for line in driven.out.splitlines()]
        assert [fork["status"] for fork in forks[:-1]] == [-signal.SIGKILL] * (len(forks) - 1)
        assert len(forks) > 15 and forks[-1]["status"] == 0
        told = json.loads((folder / killer.OUTPUT).read_text().splitlines()[-1])
        whole = trained[1].json
        assert told["digest"] == whole["digest"] and told["metrics"] == whole["metrics"]
        assert told["ledger"]["predicted"] == whole["ledger"]["predicted"] and told["status"] == "finished"
        for name, count in told["ledger"]["measured"].items():  # what a killed client had sent is not sent again
            # frozen blocks that a killed client fetched are in its folder, and need not be fetched again
            assert (count > 0 or name == "bytes_down_frozen") and count <= whole["ledger"]["measured"][name], name
        store = folder / "lwfed-runs"
        events = [json.loads(line) for line in (store / "runs/killed/events.jsonl").read_text().splitlines() if line]
        kinds = [event["event"] for event in events]
        assert (kinds.count("round"), kinds.count("stage"), kinds[-1]) == (3, 2, "finish")
        assert {path.name for path in (store / "runs/killed").iterdir()} >= {"run.json", "summary.json", "report.html"}
        assert _result(store) == _result(trained[0] / "lwfed-runs")


def _drive(folder: Path) -> Ended:
    folder.mkdir()
    command = ["run", str(write_spec(folder)), "--run-id", "killed", "--json"]
    driven = subprocess.run(
        [sys.executable, killer.__file__, folder.name, "--", *command],
        cwd=folder, env=environment(), capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    return Ended(driven.returncode, driven.stdout, driven.stderr)


def _result(store: Path) -> dict[str, bytes]:
    """Returns what a run leaves: the weights of its stages, and each round's manifest."""
    wanted = [*committed(store, "checkpoint.json"), *committed(store, "rounds/*/checkpoint.json")]
    found = {str(path.relative_to(store)): path.read_bytes() for path in wanted}
    for path in committed(store, "checkpoint.json"):
        found[str(path.relative_to(store))] = json.loads(path.read_bytes())["digest"].encode()
        for block in json.loads(path.read_bytes())["blocks"].values():
            name = f"blocks/sha256/{block['digest']}.safetensors"
            found[name] = (store / name).read_bytes()
    return found


def test_interrupted_it_goes_on(tmp_path: Path) -> None:
    long = [write_spec(tmp_path), "-o", "training.local_epochs=60"]
    undisturbed = succeed("run", *long, "-o", "store.uri=./whole", "--json", cwd=tmp_path).json
    command = ["run", *long, "--run-id", "again"]
    running = start(*command, cwd=tmp_path)
    until(lambda: committed(tmp_path / "lwfed-runs", "rounds/001/updates/*/update.json"), process=running)
    running.send_signal(signal.SIGINT)
    ended = wait(running)
    assert ended.code == 130, ended
    assert len(ended.errors) == 1 and ended.errors[0].startswith("error: interrupted -> "), ended
    assert "--run-id again" in ended.out
    assert succeed(*command, "--json", cwd=tmp_path).json["digest"] == undisturbed["digest"]


def test_clients_in_processes_end_with_the_run_and_it_goes_on(tmp_path: Path) -> None:
    """Terminated after the first update, then killed with -9 between aggregation and the round's record."""
    judged: dict[str, Any] = {
        "stages__rounds": [1, 0],
        "data__shapes__train": 2000,  # to judge a client's half of its share takes a moment
        "training__local_steps": 2,
        "evaluation__federated_every": 1,
        "evaluation__holdout_fraction": 0.5,
    }
    spec = write_spec(tmp_path, **judged)
    undisturbed = start("run", spec, "-o", "store.uri=./whole", "--json", cwd=tmp_path)
    folder = tmp_path / "in-processes"
    folder.mkdir()
    shutil.copy(spec, folder)
    command = ["run", "spec.yaml", "--run-id", "x", "-o", "launch.kind=subprocess", "-o", "launch.parallel=2"]
    store = folder / "lwfed-runs"

    running = start(*command, cwd=folder)
    until(lambda: committed(store, "rounds/001/updates/*/update.json"), process=running)
    running.terminate()
    ended = wait(running)
    assert ended.code == 130 and len(ended.errors) == 1
    assert processes_of(folder) == []

    running = start(*command, cwd=folder)
    until(lambda: committed(store, "rounds/001/checkpoint.json"), process=running)
    until(lambda: len(processes_of(folder)) > 2, process=running)  # clients judge the result
    running.kill()
    assert wait(running).code == -signal.SIGKILL
    assert not committed(store, "rounds/001/record.json")
    ends_at = time.monotonic() + 30
    while processes_of(folder):
        assert time.monotonic() < ends_at, "clients outlive the run that started them"
        time.sleep(0.1)
    assert not committed(store, "checkpoint.json")

    ended, whole = succeed(*command, "--json", cwd=folder), wait(undisturbed).json
    assert ended.json["digest"] == whole["digest"] and ended.json["metrics"] == whole["metrics"]


def test_two_runs_at_a_time_in_one_store_leave_each_others_weights(trained: tuple[Path, Ended], tmp_path: Path) -> None:
    """Two rates of one seed start from the same stored weights; the one that is ahead must not prune them."""
    spec, store = write_spec(tmp_path), tmp_path / "lwfed-runs"
    ahead = start("run", spec, "-o", "training.learning_rate=0.0015", cwd=tmp_path)
    until(lambda: committed(store, "rounds/001/round.json"), process=ahead)
    ahead.send_signal(signal.SIGSTOP)
    behind = start("run", spec, "--json", cwd=tmp_path)
    until(lambda: len(committed(store, "rounds/000/checkpoint.json")) == 2, process=behind)
    behind.send_signal(signal.SIGSTOP)
    ahead.send_signal(signal.SIGCONT)
    assert wait(ahead).code == 0
    behind.send_signal(signal.SIGCONT)
    ended = wait(behind)
    assert ended.code == 0, ended.err
    assert ended.json["digest"] == trained[1].json["digest"]
