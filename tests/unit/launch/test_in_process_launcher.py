"""Laws of the launcher of this process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lwfed.launch.in_process import InProcess
from lwfed.launch.launchers import make_launcher
from lwfed.launch.subprocess import Subprocess
from lwfed.round.workbench import Workbench
from lwfed.run.launcher import Outcome
from lwfed.spec.federation import LaunchSpec
from lwfed.spec.run import RunSpec
from lwfed.store import paths
from lwfed.store.local import LocalStore
from lwfed.types.errors import CheckpointError
from tests.events import emit_to
from tests.tiny import begun, client_task, ignore

CLIENTS = ("client-000", "client-001")


def test_clients_train_one_after_another_and_are_told_of(tmp_path: Path) -> None:
    bench, stage, _ = begun(tmp_path)
    told: list[tuple[str, dict[str, Any]]] = []
    tasks = [client_task(bench, stage, client) for client in CLIENTS]
    outcomes = InProcess(bench.store).clients(
        "train-client", tasks, deadline_s=60, emit=emit_to(lambda kind, values: told.append((kind, values)))
    )
    for client in CLIENTS:
        assert next(outcomes) == Outcome(client)
        assert bench.store.has(paths.update(stage.key, 1, client)), "told of when it is committed"
    assert list(outcomes) == []
    assert [(kind, values["client"]) for kind, values in told] == [
        (kind, client) for client in CLIENTS for kind in ("client_started", "client_step", "client_step")
    ]
    steps = [(v["step"], v["steps"]) for kind, v in told if kind == "client_step"]
    assert steps == [(1, 2), (2, 2)] * 2


def test_a_client_that_fails_does_not_end_the_others(tmp_path: Path) -> None:
    bench, stage, _ = begun(tmp_path, "training.learning_rate=1e30", "training.local_epochs=3")
    tasks = [client_task(bench, stage, client) for client in ("client-000", "client-009", "client-001")]
    first, second, third = InProcess(bench.store).clients("train-client", tasks, deadline_s=60, emit=ignore)
    assert first.exit_code == third.exit_code == 14 and "training.learning_rate" in first.reason
    assert second.client == "client-009" and second.exit_code == 1 and "client-009" in second.reason


def test_what_is_wrong_with_the_store_ends_them_all(tmp_path: Path) -> None:
    bench, stage, _ = begun(tmp_path)
    tasks = [client_task(bench, stage, client, server_round=4) for client in CLIENTS]
    with pytest.raises(CheckpointError, match="is not committed"):
        list(InProcess(bench.store).clients("train-client", tasks, deadline_s=60, emit=ignore))


def test_nobody_starts_after_the_deadline(tmp_path: Path) -> None:
    bench, stage, _ = begun(tmp_path)
    tasks = [client_task(bench, stage, client) for client in CLIENTS]
    outcomes = list(InProcess(bench.store).clients("train-client", tasks, deadline_s=-1, emit=ignore))
    assert [outcome.exit_code for outcome in outcomes] == [1, 1]
    assert all("not started before the deadline" in outcome.reason for outcome in outcomes)
    assert not any(bench.store.has(paths.update(stage.key, 1, client)) for client in CLIENTS)


def test_a_spec_names_its_launcher(tmp_path: Path) -> None:
    bench = Workbench(LocalStore(tmp_path))
    assert isinstance(make_launcher(RunSpec(), store=bench.store, run_id="r"), InProcess)
    assert isinstance(
        make_launcher(RunSpec(launch=LaunchSpec(kind="subprocess", parallel=3)), store=bench.store, run_id="r"),
        Subprocess,
    )
