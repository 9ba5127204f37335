"""Silos with credentials of their own on a real MinIO: keys rotated in a run, and a run without a revoked client."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from lwfed.cli.main import app
from lwfed.launch.agents.launcher import AgentsLauncher
from lwfed.run.launcher import Outcome
from lwfed.run.runs import Options
from lwfed.run.tasks import PoolTask
from lwfed.store.opening import open_store
from lwfed.types.errors import UnreachableError
from tests.s3 import PASSWORD, USER, Server, serving_bucket
from tests.tiny import ONE_STAGE, Finished, run_tiny, tensor_digests, tiny_spec

pytestmark = pytest.mark.slow

CLIENTS = ("client-000", "client-001")
STARTS_WITHIN_S = 240


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    yield from serving_bucket(tmp_path_factory.mktemp("s3"), "silos")


@pytest.fixture
def uri(server: Server) -> str:
    """A store that nobody has used."""
    if server.kind != "minio":
        pytest.skip("needs MinIO: `.ci/minio` builds it")
    return f"s3://silos/{uuid.uuid4().hex}"


class Hurried(AgentsLauncher):
    """Waits for agents as long as a test says."""

    deadline_s = 900.0

    def clients(self, step: str, tasks: Sequence[PoolTask], *, deadline_s: float, **others: Any) -> Iterator[Outcome]:
        """Asks the clients' agents, with another deadline."""
        return super().clients(step, tasks, deadline_s=self.deadline_s, **others)


class Hospital:
    """A machine of a client's owner: the silo's folder, and the agent's process."""

    def __init__(self, folder: Path, uri: str, client: str, *, patience_s: int) -> None:
        self.folder, self.log = folder, folder / "log"
        hidden = ("AWS_", "MINIO_", "LWFED_S3_")
        env = {name: value for name, value in os.environ.items() if not name.startswith(hidden)}
        env |= {"LWFED_S3_SECRET_DIR": str(folder / "secret"), "LWFED_S3_PATIENCE_S": str(patience_s)}
        policy = folder / "agent.yaml"
        policy.write_text(policy.read_text().replace("/var/lib/lwfed", str(folder / "state")))
        command = [sys.executable, "-m", "lwfed", "agent", "--store", uri, "--client", client, "--policy", str(policy)]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env=env, cwd=folder)

    @property
    def said(self) -> str:
        return self.log.read_text(encoding="utf-8")

    def wait_for(self, text: str) -> None:
        until = time.monotonic() + STARTS_WITHIN_S
        while text not in self.said:
            assert self.process.poll() is None and time.monotonic() < until, self.said
            time.sleep(0.1)


@pytest.fixture
def store_command(server: Server, uri: str, tmp_path: Path) -> Callable[..., None]:
    """Calls `lwfed store` as the federation's administrator, who keeps the silos' folders."""

    def call(command: str, *options: str) -> None:
        where = ["--silos", str(tmp_path / "silos")] if command == "init" else []
        CliRunner().invoke(
            app,
            ["store", command, uri, "--endpoint", server.endpoint, *where, *options],
            env={"MINIO_ROOT_USER": USER, "MINIO_ROOT_PASSWORD": PASSWORD},
            catch_exceptions=False,
        )

    return call


@pytest.fixture
def hospital(uri: str, store_command: Callable[..., None], tmp_path: Path) -> Iterator[Callable[..., Hospital]]:
    """Enrols a client, carries its folder to its owner, and starts the agent there."""
    started: list[Hospital] = []

    def make(client: str, *, patience_s: int = 60) -> Hospital:
        store_command("init", "--client", client)
        folder = tmp_path / "hospitals" / client
        shutil.copytree(tmp_path / "silos" / client, folder)
        started.append(Hospital(folder, uri, client, patience_s=patience_s))
        started[-1].wait_for("waits for work")
        return started[-1]

    yield make
    for one in started:
        one.process.kill()
        one.process.wait()


@pytest.fixture
def run(server: Server, uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Finished]:
    """Runs the tiny experiment with agents alone, and calls a function after each round."""

    def call(*overrides: str, after_round: Callable[[int], None]) -> Finished:
        for name, value in server.environment().items():
            monkeypatch.setenv(name, value)
        overrides = (f"store.uri={uri}", "launch.kind=agents", *overrides)
        rounds = 0

        def emit(kind: str, values: dict[str, Any]) -> None:
            nonlocal rounds
            if kind == "round":
                rounds += 1
                after_round(rounds)

        return run_tiny(
            tmp_path / "run", *overrides, options=Options(run_id="one"), store=open_store(uri), emit=emit,
            launcher=lambda store: Hurried(tiny_spec(uri, *overrides), store=store, run_id="one"),
        )  # fmt: skip

    return call


def test_keys_are_rotated_while_a_run_goes_on(
    hospital: Callable[..., Hospital], store_command: Callable[..., None], run: Callable[..., Finished],
    finished: Finished, tmp_path: Path,
) -> None:  # fmt: skip
    hospitals = [hospital(client) for client in CLIENTS]
    new, own = (tmp_path / where / CLIENTS[0] / "secret" / "secretkey" for where in ("silos", "hospitals"))
    timers: list[threading.Timer] = []

    def rotate(rounds: int) -> None:
        if rounds == 1:
            store_command("init", "--client", CLIENTS[0], "--rotate")
            timers.append(threading.Timer(3.0, lambda: shutil.copy(new, own)))
            timers[0].start()

    done = run(after_round=rotate)
    timers[0].join()
    assert done.digest == finished.digest
    assert tensor_digests(done.checkpoint(2)) == tensor_digests(finished.checkpoint(2))
    assert [one.process.poll() for one in hospitals] == [None, None], "nobody had to start again"
    assert [one.said.count("done in") for one in hospitals] == [4, 4], hospitals[0].said


def test_a_run_goes_on_without_a_client_that_is_revoked(
    hospital: Callable[..., Hospital],
    store_command: Callable[..., None],
    run: Callable[..., Finished],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kept, revoked = (hospital(client, patience_s=1) for client in CLIENTS)

    def revoke(rounds: int) -> None:
        monkeypatch.setattr(Hurried, "deadline_s", 15.0)
        store_command("revoke", "--client", CLIENTS[1])

    done = run(*ONE_STAGE, "federation.min_fit_clients=1", after_round=revoke)
    assert revoked.process.wait(timeout=60) == UnreachableError.exit_code
    lines = [line for line in revoked.said.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and "rejects these credentials" in lines[0] and "revoked" in lines[0]
    assert kept.process.poll() is None
    ended = [(event["round"], event["client"], event["failed"]) for event in done.reported("client_done")]
    assert [(number, client) for number, client, failed in ended if not failed] == [
        (1, CLIENTS[0]),
        (1, CLIENTS[1]),
        (2, CLIENTS[0]),
    ]
    [(number, client, why)] = [end for end in ended if end[2]]
    assert (number, client) == (2, CLIENTS[1]) and f"agent {CLIENTS[1]}" in why
