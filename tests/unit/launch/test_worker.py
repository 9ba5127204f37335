"""Laws of the process of a slot: it serves one client after another, and whatever befalls it befalls one client."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import psutil
import pytest

from lwfed.environment import child_environment
from lwfed.launch import worker
from lwfed.launch.subprocess import Subprocess
from lwfed.round.workbench import Workbench
from lwfed.run.events import Emit
from lwfed.run.stage import Stage
from lwfed.store import paths
from lwfed.types.errors import DivergedError, SpecError
from tests.events import emit_to
from tests.tiny import begun, client_task, ignore, run_tiny

pytestmark = pytest.mark.slow
CLIENTS = ("client-000", "client-001")
Told = list[tuple[str, dict[str, Any]]]


def of(bench: Workbench, **options: Any) -> closing[Subprocess]:
    return closing(Subprocess(bench.store, **{"parallel": 1, "devices": 1, "retries": 0, **options}))


def train(launcher: Subprocess, bench: Workbench, stage: Stage, *, emit: Emit = ignore) -> dict[str, int]:
    """Has two clients train; returns their exit codes."""
    tasks = [client_task(bench, stage, client) for client in CLIENTS]
    outcomes = launcher.clients("train-client", tasks, deadline_s=120, emit=emit)
    return {outcome.client: outcome.exit_code for outcome in outcomes}


def the_worker() -> psutil.Process:
    (found,) = [p for p in psutil.Process().children() if worker.__name__ in p.cmdline()]
    return found


def committed(bench: Workbench, stage: Stage) -> bool:
    return all(bench.store.has(paths.update(stage.key, 1, client)) for client in CLIENTS)


def test_a_slots_process_serves_all_its_clients_and_can_be_ended_by_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_RUN_ID", "ours-alone")
    bench, stage, _ = begun(tmp_path)
    seen: set[int] = set()
    with of(bench) as launcher:
        look = lambda kind, values: seen.add(the_worker().pid)  # noqa: E731
        assert train(launcher, bench, stage, emit=emit_to(look)) == dict.fromkeys(CLIENTS, 0)
        assert train(launcher, bench, stage, emit=emit_to(look)) == dict.fromkeys(CLIENTS, 0), (
            "nothing is trained twice"
        )
        (pid,) = seen
        assert os.getsid(pid) == os.getpgid(pid) == pid, "Ctrl-C on the terminal is not for it"
        assert "MLFLOW_RUN_ID" not in the_worker().environ()
    assert not psutil.pid_exists(pid) and committed(bench, stage)


def test_a_client_that_fails_of_its_own_plan_leaves_the_process_to_the_next(tmp_path: Path) -> None:
    bench, stage, _ = begun(tmp_path, "training.learning_rate=1e30", "training.local_steps=3")
    seen: set[int] = set()
    with of(bench, retries=1) as launcher:
        codes = train(launcher, bench, stage, emit=lambda _: seen.add(the_worker().pid))
    assert codes == dict.fromkeys(CLIENTS, DivergedError.exit_code) and len(seen) == 1


def test_a_process_that_dies_between_rounds_costs_no_client_a_try(tmp_path: Path) -> None:
    bench, stage, _ = begun(tmp_path)
    with of(bench) as launcher:
        list(launcher.clients("train-client", [client_task(bench, stage, CLIENTS[0])], deadline_s=120, emit=ignore))
        before = the_worker()
        before.kill()
        psutil.wait_procs([before], timeout=10)
        assert train(launcher, bench, stage) == dict.fromkeys(CLIENTS, 0)
        assert the_worker() != before
    assert committed(bench, stage)


def test_workers_train_and_read_on_several_threads_and_end_in_the_same_digest(tmp_path: Path) -> None:
    options = ("training.threads=2", "data.workers=1", "data.augment=true", "stages.rounds=[1,1]")
    here = run_tiny(tmp_path / "here", *options)
    there = run_tiny(
        tmp_path / "there", *options, launcher=lambda store: Subprocess(store, parallel=2, devices=1, retries=0)
    )
    assert here.digest == there.digest
    assert not there.reported("warning")


def test_a_client_sees_the_gpus_of_its_slot(tmp_path: Path) -> None:
    """None of these GPUs is here, and the first client to find that out says which it was given."""
    bench, stage, _ = begun(tmp_path, "evaluation.holdout_fraction=0.25")
    told: Told = []
    tasks = [client_task(bench, stage, client) for client in CLIENTS]
    tasks = [task.model_copy(update={"place": task.place.model_copy(update={"device": "cuda"})}) for task in tasks]
    with (
        of(bench, parallel=2, devices=2, gpus=("GPU-a", "GPU-b", "GPU-c")) as launcher,
        pytest.raises(SpecError) as raised,
    ):
        list(
            launcher.clients("evaluate-client", tasks, deadline_s=120, emit=emit_to(lambda *event: told.append(event)))
        )
    given = {values["client"]: values["gpus"] for kind, values in told if kind == "client_started"}
    assert given == {"client-000": ["GPU-a", "GPU-b"], "client-001": ["GPU-c", "GPU-a"]}
    found = re.match(r"(client-\d+): .*torch sees no GPU in CUDA_VISIBLE_DEVICES=(\S+) ", str(raised.value))
    assert found is not None and given[found[1]] == found[2].split(",")


PROGRAM = """
import signal, sys, time
from lwfed.launch.subprocess import Subprocess
from lwfed.run.tasks import ClientTask
from lwfed.store.opening import open_store

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
task = ClientTask.model_validate_json(sys.argv[1])
launcher = Subprocess(open_store(task.store), parallel=1, devices=1, retries=0)
list(launcher.clients("train-client", [task], deadline_s=600, emit=lambda event: print(event.kind, flush=True)))
print("idle", flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGINT])
@pytest.mark.parametrize(("steps", "idle"), [(1_000_000, False), (1, True)])
def test_a_coordinator_that_ends_leaves_no_process(
    tmp_path: Path, sign: signal.Signals, steps: int, idle: bool
) -> None:
    """Killed, it can end nobody; interrupted, it ends its clients and never comes to close its launcher."""
    bench, stage, _ = begun(tmp_path, f"training.local_steps={steps}")
    task = client_task(bench, stage, "client-000").model_dump_json()
    coordinator = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, task], env=child_environment(), stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    with coordinator:
        assert coordinator.stdout is not None
        assert next(line for line in coordinator.stdout if ("idle" if idle else "step") in line)
        left = psutil.Process(coordinator.pid).children(recursive=True)
        assert len(left) == 1
        coordinator.send_signal(sign)
        coordinator.stdout.close()
    _, alive = psutil.wait_procs(left, timeout=30)
    assert not [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]
