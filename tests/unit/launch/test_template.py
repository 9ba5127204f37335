"""Laws of clients that are forked: each is a process of its own, and nobody needs the template to live."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import psutil
import pytest

from lwfed.environment import child_environment
from lwfed.launch import template
from lwfed.launch.subprocess import Subprocess
from lwfed.round.workbench import Workbench
from lwfed.run.stage import Stage
from lwfed.store import paths
from lwfed.types.errors import SpecError
from tests.tiny import begun, client_task, ignore, run_tiny

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not template.CAN_FORK, reason="elsewhere clients are not forked"),
]
CLIENTS = ("client-000", "client-001")
Told = list[tuple[str, dict[str, Any]]]


def of(bench: Workbench, **options: Any) -> closing[Subprocess]:
    return closing(Subprocess(bench, **{"parallel": 2, "devices": 1, "retries": 0, **options}))


def train(
    launcher: Subprocess, bench: Workbench, stage: Stage, *, emit: Callable[[str, dict[str, Any]], None] = ignore
) -> dict[str, int]:
    """Has two clients train; gives their exit codes."""
    tasks = [client_task(bench, stage, client) for client in CLIENTS]
    outcomes = launcher.clients("train-client", tasks, deadline_s=120, emit=emit)
    return {outcome.client: outcome.exit_code for outcome in outcomes}


def the_template() -> psutil.Process:
    (found,) = [p for p in psutil.Process().children() if "lwfed.cli.template" in p.cmdline()]
    return found


def committed(bench: Workbench, stage: Stage) -> bool:
    return all(bench.store.has(paths.update(stage.key, 1, client)) for client in CLIENTS)


def test_each_client_is_a_process_of_its_own_whose_parent_has_one_thread_and_no_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_RUN_ID", "ours-alone")
    bench, stage, _ = begun(tmp_path, "training.local_steps=100")
    seen: dict[int, tuple[int, str]] = {}

    def look(kind: str, values: dict[str, Any]) -> None:
        if kind == "client_step":
            seen.update({fork.pid: (os.getpgid(fork.pid), fork.name()) for fork in the_template().children()})

    with of(bench) as launcher:
        assert train(launcher, bench, stage, emit=look) == dict.fromkeys(CLIENTS, 0)
        parent = the_template()
        assert train(launcher, bench, stage) == dict.fromkeys(CLIENTS, 0), "what is committed is not done again"
        assert the_template() == parent, "one template serves all rounds"
        assert parent.num_threads() == 1, "what no fork would inherit"
        assert not [path for path in opened(parent.pid) if "nvidia-uvm" in path], "CUDA was asked for"
        assert "MLFLOW_RUN_ID" not in parent.environ()
        assert os.getsid(parent.pid) == parent.pid, "Ctrl-C on the terminal is not for it"
    assert all(group == pid != parent.pid for pid, (group, _) in seen.items()), "each can be ended by itself"
    assert {name for _, name in seen.values()} <= set(CLIENTS) and len(seen) >= 1
    assert not parent.is_running() and committed(bench, stage)


def opened(pid: int) -> list[str]:
    """Paths of the files that a process has open."""
    return [str(path.readlink()) for path in Path(f"/proc/{pid}/fd").iterdir()]


def test_forks_train_on_several_threads_with_workers_and_end_in_the_same_digest(tmp_path: Path) -> None:
    options = ("training.threads=2", "data.workers=1", "data.augment=true", "stages.rounds=[1,1]")
    here = run_tiny(tmp_path / "here", *options)
    there = run_tiny(
        tmp_path / "there",
        *options,
        launcher=lambda store: Subprocess(Workbench(store), parallel=2, devices=1, retries=0),
    )
    assert here.digest == there.digest
    assert not there.told("warning")


def test_a_template_that_cannot_start_is_named_and_clients_start_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(template, "MODULE", "lwfed.cli.no_template")
    bench, stage, _ = begun(tmp_path)
    told: Told = []
    with of(bench) as launcher:
        assert train(launcher, bench, stage, emit=lambda *event: told.append(event)) == dict.fromkeys(CLIENTS, 0)
    (warning,) = [values["message"] for kind, values in told if kind == "warning"]
    assert "each client imports torch by itself" in warning and "No module named lwfed.cli.no_template" in warning
    assert committed(bench, stage)


def test_a_template_that_dies_between_rounds_is_done_without(tmp_path: Path) -> None:
    bench, stage, _ = begun(tmp_path)
    told: Told = []
    with of(bench) as launcher:
        list(launcher.clients("train-client", [client_task(bench, stage, "x")], deadline_s=120, emit=ignore))
        the_template().kill()
        assert train(launcher, bench, stage, emit=lambda *event: told.append(event)) == dict.fromkeys(CLIENTS, 0)
    (warning,) = [values["message"] for kind, values in told if kind == "warning"]
    assert "killed by signal 9" in warning and committed(bench, stage)


def test_clients_outlive_their_template_and_are_asked_again_how_they_ended(tmp_path: Path) -> None:
    """Without a template nobody hears a client's exit code; what it has committed is not trained a second time."""
    bench, stage, _ = begun(tmp_path, "training.local_steps=100")
    told: Told = []
    killed: list[int] = []

    def emit(kind: str, values: dict[str, Any]) -> None:
        told.append((kind, values))
        if kind == "client_step" and not killed:
            killed.append(the_template().pid)
            the_template().kill()

    with of(bench, parallel=1, gpus=("3", "7")) as launcher:
        assert train(launcher, bench, stage, emit=emit) == dict.fromkeys(CLIENTS, 0)
    lines = [(values["client"], values["line"]) for kind, values in told if kind == "client_log"]
    assert lines == [("client-000", "tried again: its template died: it left no word")]
    assert [v["step"] for kind, v in told if kind == "client_step" and v["client"] == "client-000"] == [*range(1, 101)]
    assert committed(bench, stage)
    started = [(values["client"], values["gpus"]) for kind, values in told if kind == "client_started"]
    assert started == [("client-000", ["3"]), ("client-001", ["3"]), ("client-000", ["3"])], "the slot, and its GPU"


def test_a_client_sees_the_gpus_of_its_slot(tmp_path: Path) -> None:
    """None of these GPUs is here, and the first client to find that out says which it was given."""
    bench, stage, _ = begun(tmp_path, "evaluation.holdout_fraction=0.25")
    told: Told = []
    tasks = [client_task(bench, stage, client) for client in CLIENTS]
    tasks = [task.model_copy(update={"place": task.place.model_copy(update={"device": "cuda"})}) for task in tasks]
    with of(bench, devices=2, gpus=("GPU-a", "GPU-b", "GPU-c")) as launcher, pytest.raises(SpecError) as raised:
        list(launcher.clients("evaluate-client", tasks, deadline_s=120, emit=lambda *event: told.append(event)))
    given = {values["client"]: values["gpus"] for kind, values in told if kind == "client_started"}
    assert given == {"client-000": ["GPU-a", "GPU-b"], "client-001": ["GPU-c", "GPU-a"]}
    found = re.match(r"(client-\d+): .*torch sees no GPU in CUDA_VISIBLE_DEVICES=(\S+) ", str(raised.value))
    assert found is not None and given[found[1]] == found[2].split(",")


PROGRAM = """
import sys, time
from lwfed.launch.subprocess import Subprocess
from lwfed.run.tasks import ClientTask
from lwfed.round.workbench import Workbench

task = ClientTask.model_validate_json(sys.argv[1])
launcher = Subprocess(Workbench.at(task.store), parallel=1, devices=1, retries=0)
list(launcher.clients("train-client", [task], deadline_s=600, emit=lambda kind, values: print(kind, flush=True)))
"""


@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGINT])
def test_a_coordinator_that_ends_leaves_neither_template_nor_clients(tmp_path: Path, sign: signal.Signals) -> None:
    """Killed, it can end nobody; interrupted, it ends its clients and never comes to close its launcher."""
    bench, stage, _ = begun(tmp_path, "training.local_steps=1000000")
    task = client_task(bench, stage, "client-000").model_dump_json()
    coordinator = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, task], env=child_environment(), stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    with coordinator:
        assert coordinator.stdout is not None
        assert next(line for line in coordinator.stdout if "step" in line)
        left = psutil.Process(coordinator.pid).children(recursive=True)
        assert len(left) == 2
        coordinator.send_signal(sign)
        coordinator.stdout.close()
    _, alive = psutil.wait_procs(left, timeout=30)
    assert not [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]
