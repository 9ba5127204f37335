"""Enrolment, rotation and revocation with a real MinIO: what a silo gets, and what its agent says when kept out."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import botocore.auth
import pytest
from typer.testing import CliRunner

from lwfed.agent.judging import PolicyJudge
from lwfed.agent.policy import Policy
from lwfed.agent.serve import Agent, Settings
from lwfed.cli.main import app
from lwfed.store import paths
from lwfed.store.provision import access_key_of
from lwfed.store.s3.store import S3Store
from lwfed.types.errors import DeniedError, UnreachableError
from tests.events import ignore
from tests.s3 import PASSWORD, USER, Server

CLIENT = "client-009"
Init = Callable[..., Any]
Enter = Callable[..., S3Store]


@pytest.fixture
def silos(tmp_path: Path) -> Path:
    return tmp_path / "silos"


@pytest.fixture
def init(uri: str, minio: Server, silos: Path) -> Init:
    """Calls `lwfed store init` for silos, or another command of `lwfed store`."""

    def call(*options: str, command: str = "init", code: int = 0) -> Any:
        where = ["--silos", str(silos)] if command == "init" else []
        done = CliRunner().invoke(
            app,
            ["store", command, uri, "--endpoint", minio.endpoint, *where, *options],
            env={"MINIO_ROOT_USER": USER, "MINIO_ROOT_PASSWORD": PASSWORD},
        )
        found = getattr(done.exception, "exit_code", done.exit_code)
        assert found == code, (done.exception, done.stderr)
        return done

    return call


@pytest.fixture
def enter(uri: str, silos: Path, monkeypatch: pytest.MonkeyPatch) -> Enter:
    """Opens the store with a silo's folder alone."""

    def open_as(client: str = CLIENT, *, patience_s: float = 1.0) -> S3Store:
        for name in ("AWS_ENDPOINT_URL_S3", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("LWFED_S3_SECRET_DIR", str(silos / client / "secret"))
        return S3Store(uri, patience_s=patience_s)

    return open_as


def serve(store: S3Store, client: str = CLIENT) -> list[str]:
    """Runs an agent that has nothing to do, until it has been idle; returns what it said."""
    said: list[str] = []
    settings = Settings(name=client, idle_s=1.0)
    Agent(store, settings=settings, judge=PolicyJudge(Policy(), client=client), say=said.append, emit=ignore).serve()
    return said


def kept_out(store: S3Store, client: str = CLIENT) -> DeniedError:
    """Returns the error with which an agent ends that may not work; it says nothing else."""
    said: list[str] = []
    settings = Settings(name=client, idle_s=60.0)
    with pytest.raises(DeniedError) as caught:
        Agent(
            store, settings=settings, judge=PolicyJudge(Policy(), client=client), say=said.append, emit=ignore
        ).serve()
    assert said == [] and caught.value.exit_code == UnreachableError.exit_code and "\n" not in str(caught.value)
    return caught.value


def secret(silos: Path, client: str = CLIENT) -> str:
    return (silos / client / "secret" / "secretkey").read_text().strip()


def test_a_silo_is_enrolled_by_one_command_and_again_changes_nothing(init: Init, enter: Enter, silos: Path) -> None:
    done = init("--client", CLIENT)
    assert done.stdout.count("kind: Secret") == 1 and "lwfed-store-server" in done.stdout, "the server's Secret as ever"
    assert secret(silos) not in done.stdout + done.stderr
    assert serve(enter()) == []
    (silos / CLIENT / "agent.yaml").write_text("min_cohort: 5\n")
    before = {path: path.read_bytes() for path in silos.rglob("*") if path.is_file()}
    again = init("--client", CLIENT)
    assert {path: path.read_bytes() for path in silos.rglob("*") if path.is_file()} == before
    assert again.stdout == "" and "agent.yaml" in again.stderr


def test_rotation_makes_an_old_secret_useless_and_leaves_the_policy(init: Init, enter: Enter, silos: Path) -> None:
    server = init("--client", CLIENT, "--client", "client-1").stdout
    (silos / CLIENT / "agent.yaml").write_text("min_cohort: 5\n")
    old, other = secret(silos), secret(silos, "client-1")
    done = init("--client", CLIENT, "--rotate")
    assert done.stdout == "" and "kind: Secret" in server, "the server's and others' secrets stay"
    assert secret(silos) != old and secret(silos, "client-1") == other
    assert (silos / CLIENT / "agent.yaml").read_text() == "min_cohort: 5\n"
    assert serve(enter()) == [] and serve(enter("client-1"), "client-1") == []
    (silos / CLIENT / "secret" / "secretkey").write_text(old)
    error = kept_out(enter())
    assert "rejects these credentials (SignatureDoesNotMatch)" in error.problem and "rotated" in error.remedy
    assert init("--client", "server", "--rotate").stdout.count("kind: Secret") == 1, "the server's, if it is named"
    told = init("--client", CLIENT, "--rotate", "--json").stdout
    assert secret(silos) not in told and json.loads(told)["silos"][0]["kept"] == ["agent.yaml"]


def test_credentials_in_variables_are_refused_likewise_and_renewed_by_a_start(
    uri: str, init: Init, enter: Enter, silos: Path, minio: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    init("--client", CLIENT)

    def as_variables() -> S3Store:
        monkeypatch.delenv("LWFED_S3_SECRET_DIR", raising=False)
        for name, value in minio.environment(user=access_key_of(uri, CLIENT), password=secret(silos)).items():
            monkeypatch.setenv(name, value)
        return S3Store(uri, patience_s=30)

    store = as_variables()
    assert serve(store) == []
    init("--client", CLIENT, "--rotate")
    began = time.monotonic()
    assert "rejects" in kept_out(store).problem
    assert time.monotonic() - began < 25, "variables never change, so nobody waits"
    assert serve(as_variables()) == []


def test_a_revoked_client_is_kept_out_until_it_is_readmitted_by_name(init: Init, enter: Enter, silos: Path) -> None:
    init("--clients", "2")
    store = enter("client-001")
    assert serve(store, "client-001") == []
    assert "revoked" in init("--client", "client-001", command="revoke").stderr
    error = kept_out(store, "client-001")
    assert "rejects these credentials (InvalidAccessKeyId)" in error.problem and "revoked" in error.remedy
    kept_out(enter("client-001"), "client-001")
    assert serve(enter("client-000"), "client-000") == [], "the others go on"
    told = json.loads(init("--client", "client-001", "--json", command="revoke").stdout)
    assert told["revoked"] == [] and told["already"] == ["client-001"]
    for again in ((), ("--rotate",)):
        assert "revoked: client-001" in init("--clients", "2", *again).stderr
        kept_out(enter("client-001"), "client-001")
    init("--client", "client-001", "--rotate")
    assert serve(enter("client-001"), "client-001") == []


def test_nobody_is_revoked_by_a_name_that_is_wrong(init: Init, enter: Enter) -> None:
    init("--client", CLIENT)
    init("--client", CLIENT, "--client", "client-9", command="revoke", code=19)
    assert serve(enter()) == []


def test_a_secret_that_nobody_knows_any_more_is_not_made_up(init: Init, silos: Path) -> None:
    init("--client", CLIENT)
    (silos / CLIENT / "secret" / "secretkey").unlink()
    done = init("--client", CLIENT, "--client", "client-1", code=10)
    assert CLIENT in str(done.exception) and "--rotate" in str(done.exception)
    assert secret(silos, "client-1"), "the others are enrolled"


def test_credentials_of_another_client_are_refused_before_any_work(init: Init, enter: Enter) -> None:
    init("--client", CLIENT, "--client", "client-1")
    error = kept_out(enter("client-1"))
    assert "does not allow these credentials" in error.problem and f"{CLIENT}.json" in error.problem


def test_another_clients_beats_and_updates_are_neither_read_nor_written(init: Init, enter: Enter) -> None:
    init("--client", CLIENT, "--client", "client-1")
    mine = enter()
    keys = [paths.beats("r", CLIENT), paths.update("5" * 64, 1, CLIENT), paths.client_data("r", CLIENT)]
    for key in keys:
        assert mine.write_ref(key, {"mine": 1}) and mine.read_ref(key) == {"mine": 1}
    theirs = enter("client-1")
    for key in keys:
        for work in (theirs.read_ref, lambda key: theirs.write_ref(key, {}), theirs.delete, theirs.get):
            with pytest.raises(DeniedError, match="does not allow"):
                work(key)
    assert [enter().read_ref(key) for key in keys] == [{"mine": 1}] * 3


@pytest.mark.parametrize(("hours", "side"), [(2, "ahead of"), (-2, "behind")])
def test_a_clock_two_hours_off_is_told_in_one_line(
    hours: int, side: str, init: Init, enter: Enter, monkeypatch: pytest.MonkeyPatch
) -> None:
    init("--client", CLIENT)
    off, now = timedelta(hours=hours), botocore.auth.get_current_datetime

    class Clock(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return datetime.now(tz) + off

    monkeypatch.setattr("botocore.auth.get_current_datetime", lambda *args: now(*args) + off)
    monkeypatch.setattr("lwfed.store.s3.client.datetime", Clock)
    error = kept_out(enter())
    assert "(RequestTimeTooSkewed)" in error.problem
    assert re.search(rf"this machine's clock is (2 h 0|1 h 59) min {side} the server's", error.problem)
    assert "NTP" in error.remedy


def test_new_keys_in_a_mounted_secret_are_waited_for(init: Init, enter: Enter, silos: Path) -> None:
    init("--client", CLIENT)
    store = enter(patience_s=20)
    assert store.write_ref(paths.beats("r", CLIENT), 1)
    file = silos / CLIENT / "secret" / "secretkey"
    old = file.read_text()
    init("--client", CLIENT, "--rotate")
    new = file.read_text()
    file.write_text(old)

    def deliver() -> None:
        file.unlink()  # for a moment it is not there
        time.sleep(0.5)
        file.write_text(new)

    timer = threading.Timer(1.5, deliver)
    timer.start()
    began = time.monotonic()
    assert store.write_ref(paths.beats("r", CLIENT), 2) and store.read_ref(paths.beats("r", CLIENT)) == 2
    assert time.monotonic() - began > 1
    timer.join()
    file.write_text(old)
    with pytest.raises(DeniedError, match="rejects"):
        enter(patience_s=20).read_ref(paths.beats("r", CLIENT))  # keys that never worked are not waited for


def test_keys_that_nobody_renews_are_refused_in_the_end(init: Init, enter: Enter, silos: Path) -> None:
    init("--client", CLIENT)
    store = enter(patience_s=2)
    assert serve(store) == []
    old = (silos / CLIENT / "secret" / "secretkey").read_text()
    init("--client", CLIENT, "--rotate")
    (silos / CLIENT / "secret" / "secretkey").write_text(old)
    began = time.monotonic()
    kept_out(store)
    assert time.monotonic() - began > 1
