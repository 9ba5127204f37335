"""Laws of the launcher of processes, with real ones."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from lwfed.launch import worker
from lwfed.launch.subprocess import Subprocess
from lwfed.round.train_client import train_client
from lwfed.round.workbench import Workbench
from lwfed.run.stage import Stage
from lwfed.store import paths
from lwfed.types.errors import CheckpointError
from tests.events import emit_to
from tests.tiny import begun, client_task, ignore

CLIENTS = ("client-000", "client-001")
WALL_CLOCK = {"wall_s", "peak_rss_bytes"}


def processes() -> list[psutil.Process]:
    """Workers that this process has started and that still run; other tests' servers are none."""
    found = []
    for process in psutil.Process().children():
        with suppress(psutil.NoSuchProcess):  # it has just ended
            if process.status() != psutil.STATUS_ZOMBIE and worker.__name__ in process.cmdline():
                found.append(process)
    return found


@pytest.fixture
def launcher(tmp_path: Path) -> Iterator[Callable[..., Subprocess]]:
    """Makes launchers; closed, they leave no process."""
    with ExitStack() as stack:

        def make(bench: Workbench, **options: Any) -> Subprocess:
            made = Subprocess(bench.store, **{"parallel": 2, "devices": 1, "retries": 0, **options})
            return stack.enter_context(closing(made))

        yield make
    assert not processes()


def warm_up(launcher: Subprocess, bench: Workbench, stage: Stage) -> None:
    """Waits until a worker has imported what a client needs; its client is of a round that is committed."""
    other, same, _ = begun(Path(bench.store.uri), "training.local_steps=1")
    (ended,) = launcher.clients("train-client", [client_task(other, same, "client-000")], deadline_s=120, emit=ignore)
    assert ended.exit_code == 0 and stage.key != same.key and len(processes()) == 1


@pytest.mark.slow
def test_updates_are_those_of_this_process_and_failures_are_named(
    tmp_path: Path, launcher: Callable[..., Subprocess]
) -> None:
    """One client is well, one has a name that the plan does not know: two processes at once."""
    bench, stage, _ = begun(tmp_path / "out")
    told: list[tuple[str, dict[str, Any]]] = []
    tasks = [client_task(bench, stage, client) for client in ("client-000", "client-009")]
    outcomes = launcher(bench).clients(
        "train-client", tasks, deadline_s=120, emit=emit_to(lambda kind, values: told.append((kind, values)))
    )
    found = {outcome.client: outcome for outcome in outcomes}
    assert found["client-000"].exit_code == 0 and found["client-000"].reason == ""
    assert found["client-009"].exit_code == 1 and "client-009" in found["client-009"].reason
    assert [v["client"] for kind, v in told if kind == "client_started"] == ["client-000", "client-009"]
    assert [v["step"] for kind, v in told if kind == "client_step"] == [1, 2]
    here, same, _ = begun(tmp_path / "in")
    expected = train_client(client_task(here, same, "client-000"), bench=here)
    update = bench.store.read_ref(paths.update(stage.key, 1, "client-000"))
    assert update is not None and stage.key == same.key
    for value in (update, expected):
        value["metrics"] = {k: v for k, v in value["metrics"].items() if k not in WALL_CLOCK}
    assert update == expected
    assert len(processes()) == 1, "the process of the client that failed of something unforeseen is not used again"


@pytest.mark.slow
def test_a_store_that_is_damaged_ends_the_stage_with_its_own_error_after_a_second_try(
    tmp_path: Path, launcher: Callable[..., Subprocess]
) -> None:
    bench, stage, _ = begun(tmp_path)
    logs: list[str] = []
    outcomes = launcher(bench, retries=1).clients(
        "train-client", [client_task(bench, stage, "client-000", server_round=5)], deadline_s=120,
        emit=emit_to(lambda kind, values: logs.append(values["line"]) if kind == "client_log" else None),
    )  # fmt: skip
    with pytest.raises(CheckpointError, match=r"client-000: .*rounds/004/checkpoint.json is not committed"):
        list(outcomes)
    assert len([line for line in logs if line.startswith("tried again")]) == 1
    assert not processes()


@pytest.mark.slow
def test_a_deadline_ends_processes_and_names_those_that_were_late(
    tmp_path: Path, launcher: Callable[..., Subprocess]
) -> None:
    bench, stage, _ = begun(tmp_path, "training.local_steps=1000000")
    clients = launcher(bench)
    warm_up(clients, bench, stage)
    started = time.monotonic()
    seen: list[int] = []

    def look(kind: str, values: dict[str, Any]) -> None:
        seen.extend(process.pid for process in processes())

    tasks = [client_task(bench, stage, client) for client in (*CLIENTS, "client-002")]
    outcomes = list(clients.clients("train-client", tasks, deadline_s=3.0, emit=emit_to(look)))
    assert time.monotonic() - started < 3 + 12, "asked to end, then ended"
    assert {o.client for o in outcomes} == {*CLIENTS, "client-002"}, "running and waiting ones alike"
    assert all(o.exit_code == 1 and "not done before the deadline of 3 s" in o.reason for o in outcomes)
    assert len(set(seen)) == 2 and not processes(), "two at a time, and none is left"
    assert not any(bench.store.has(paths.update(stage.key, 1, client)) for client in CLIENTS)


@pytest.mark.slow
@pytest.mark.parametrize("parallel", [1, 2])
def test_who_is_not_needed_any_more_is_stopped_and_did_not_fail(
    tmp_path: Path, launcher: Callable[..., Subprocess], parallel: int
) -> None:
    bench, stage, _ = begun(tmp_path)
    tasks = [client_task(bench, stage, client) for client in CLIENTS]
    clients = launcher(bench, parallel=parallel)
    (outcome,) = clients.clients("train-client", tasks, deadline_s=120, emit=ignore, need=1)
    assert outcome.exit_code == 0 and bench.store.has(paths.update(stage.key, 1, outcome.client))
    assert len(processes()) == 1, "the worker of the client that is done"


@pytest.mark.slow
def test_whoever_stops_listening_leaves_no_process_behind(tmp_path: Path, launcher: Callable[..., Subprocess]) -> None:
    bench, stage, _ = begun(tmp_path, "training.local_steps=1000000")

    def interrupt(kind: str, values: dict[str, Any]) -> None:
        if kind == "client_step":
            raise KeyboardInterrupt

    outcomes = launcher(bench).clients(
        "train-client",
        [client_task(bench, stage, client) for client in CLIENTS],
        deadline_s=120,
        emit=emit_to(interrupt),
    )  # fmt: skip
    with pytest.raises(KeyboardInterrupt):
        next(outcomes)
    assert not processes()


def test_no_tasks_need_no_process(tmp_path: Path, launcher: Callable[..., Subprocess]) -> None:
    bench, _, _ = begun(tmp_path)
    assert list(launcher(bench).clients("train-client", [], deadline_s=1, emit=ignore)) == []
    assert not processes()


@pytest.mark.slow
def test_a_killed_client_is_tried_again(tmp_path: Path, launcher: Callable[..., Subprocess]) -> None:
    """Killed once by signal 9, as the kernel does when memory is short; the second try commits."""
    bench, stage, _ = begun(tmp_path)
    logs: list[str] = []
    killed: list[int] = []

    def emit(kind: str, values: dict[str, Any]) -> None:
        if kind == "client_started" and not killed:
            killed.extend(process.pid for process in processes())
            os.kill(killed[0], 9)
        if kind == "client_log":
            logs.append(values["line"])

    outcomes = list(
        launcher(bench, retries=1).clients(
            "train-client", [client_task(bench, stage, "client-000")], deadline_s=120, emit=emit_to(emit)
        )
    )
    assert [outcome.exit_code for outcome in outcomes] == [0] and len(killed) == 1
    (told,) = logs
    assert told.startswith("tried again: killed by signal 9: no message") and "launch.parallel" in told
    assert bench.store.has(paths.update(stage.key, 1, "client-000"))
