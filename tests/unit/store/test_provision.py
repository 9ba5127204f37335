"""Laws of credentials, with a real MinIO: a client writes its own folder, reads what is everybody's, and no more."""

from __future__ import annotations

import json
import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from typer.testing import CliRunner

from lwfed.cli.store import app
from lwfed.store import paths
from lwfed.store.blocks import read_block, write_block
from lwfed.store.manifest import block_key
from lwfed.store.opening import open_store
from lwfed.store.policies import SERVER, client_policy, server_policy
from lwfed.store.protocol import Store
from lwfed.store.provision import access_key_of, provision
from lwfed.store.s3.access import Access
from lwfed.store.s3.store import S3Store
from lwfed.types.errors import SpecError, UnreachableError
from tests.s3 import PASSWORD, USER, Server

STAGE = "5" * 64
CLIENTS = ["client-1", "client-10", "client-100"]


@pytest.fixture
def admin(minio: Server) -> Access:
    return Access(access_key=USER, secret_key=PASSWORD, endpoint=minio.endpoint)


@pytest.fixture
def acting(uri: str, admin: Access, minio: Server, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Store]:
    """Opens the store as one of its users."""
    users = {user.who: user for user in provision(uri, clients=CLIENTS, admin=admin).users}

    def become(who: str) -> Store:
        user = users[who]
        assert user.secret_key is not None
        for name, value in minio.environment(user=user.access_key, password=user.secret_key).items():
            monkeypatch.setenv(name, value)
        return S3Store(uri, part_bytes=5 << 20, patience_s=2)

    return become


def test_a_client_does_its_work_and_nothing_else(acting: Callable[[str], Store]) -> None:
    server = acting(SERVER)
    block = write_block(server, {"image.stem.w": torch.arange(9.0)})
    everybodys = [
        paths.stage_plan(STAGE), paths.stage_checkpoint(STAGE), paths.round_checkpoint(STAGE, 0),
        paths.round_task(STAGE, 7), paths.round_checkpoint(STAGE, 1007), paths.job("j"), paths.heartbeat("r"),
        paths.spec("d"), paths.checked_data("v", ["image"], "train"), paths.run("r"), paths.wants("r"),
    ]  # fmt: skip
    others = [
        paths.accepted(STAGE, 7), paths.round_metrics(STAGE, 7), paths.update(STAGE, 7, "client-10"),
        paths.update(STAGE, 7, "client-100"), paths.client_evaluation(STAGE, 7, "client-10"),
        paths.client_data("r", "client-10"), paths.summary("r"), paths.beats("r", "client-10"),
        paths.beats("r", "client-100"), paths.beats("r", "server"),
    ]  # fmt: skip
    for key in (*everybodys, *others):
        server.write_ref(key, {"by": "server"})
    server.append(paths.events("r"), b"1\n")

    store = acting("client-1")
    for key in everybodys:
        assert store.read_ref(key) == {"by": "server"}, key
    assert torch.equal(read_block(store, block_key(block), block)["image.stem.w"], torch.arange(9.0))
    for server_round in (7, 1007):
        ref, folder = (make(STAGE, server_round, "client-1") for make in (paths.update, paths.updates))
        assert store.read_ref(ref) is None and not store.has(ref), "missing is not forbidden"
        written = write_block(store, {"image.stem.w": torch.arange(4_000_000.0)}, key=folder)  # in parts
        assert store.write_ref(ref, {"n": 1}, if_absent=True) and not store.write_ref(ref, {"n": 2}, if_absent=True)
        assert read_block(store, f"{folder}/{written.digest}.safetensors", written)
        assert store.write_ref(paths.client_evaluation(STAGE, server_round, "client-1"), {"n": 1}, if_absent=True)
    assert store.read_ref(paths.client_data("r", "client-1")) is None
    assert store.write_ref(paths.client_data("r", "client-1"), {"n": 1})
    beats = paths.beats("r", "client-1")
    assert store.read_ref(beats) is None, "missing is not forbidden"
    assert store.write_ref(beats, {"n": 1}) and store.write_ref(beats, {"n": 2}) and store.read_ref(beats) == {"n": 2}
    assert list(store.list(paths.AGENT_RUNS)) == [paths.wants("r")], "an agent finds the runs that want it"

    nested = f"{paths.updates(STAGE, 7, 'client-10')}/rounds/007/updates/client-1/x"
    forbidden = [
        *everybodys, *others, block_key(block), paths.events("r"), "anything", nested, "updates/client-1/x",
        "stages/x/rounds/007/updates/client-1/x", paths.update(STAGE, 7, "client-1000"),
        paths.client_data("r/clients/client-10", "client-1"), f"stages/{STAGE}/rounds/7/updates/client-1/x",
        f"stages/{STAGE}/updates/client-1/x", paths.beats("r/client-10", "client-1"), paths.beats("r", "client-1000"),
        "agents/beats/client-1.json", f"{paths.beats('r', 'client-1')}/x", "agents/runs/client-1.json",
    ]  # fmt: skip
    for key in forbidden:
        for work in (
            lambda: store.write_ref(key, 1),  # noqa: B023
            lambda: store.write_ref(key, 1, if_absent=True),  # noqa: B023
            lambda: store.put(key, [b"x"]),  # noqa: B023
            lambda: store.put(key, [bytes(12 << 20)]),  # noqa: B023
            lambda: store.delete(key),  # noqa: B023
        ):
            refused(work, key)
    for key in (*others, nested):
        refused(lambda: store.read_ref(key), key)  # noqa: B023
    for prefix in ("", "agents", "agents/beats/", "stages/", "runs/"):
        refused(lambda: list(store.list(prefix)), prefix)  # noqa: B023
    refused(lambda: store.delete(paths.update(STAGE, 7, "client-1")), "what is committed stays")

    server = acting(SERVER)
    for key in (*everybodys, *others):
        assert server.read_ref(key) == {"by": "server"}, key
    assert acting("client-10").read_ref(paths.update(STAGE, 7, "client-10")) == {"by": "server"}
    server = acting(SERVER)
    server.delete(*server.list(""))
    assert list(server.list("")) == []
    refused(lambda: open_store(server.uri.rpartition("/")[0]).write_ref("x", 1), "beside the store")


def refused(work: Callable[[], Any], what: str) -> None:
    """Checks that something is forbidden; a write with `if_absent` may say so by finding that it is not the first."""
    try:
        found = work()
    except UnreachableError as error:
        assert "does not allow" in error.problem and "lwfed store" in error.remedy, what
        return
    assert found is False, what


def test_doing_it_again_changes_nothing(uri: str, admin: Access) -> None:
    first = provision(uri, clients=["client-1"], admin=admin)
    assert [user.who for user in first.users] == [SERVER, "client-1"]
    assert all(user.made and user.secret_key and len(user.secret_key) == 40 for user in first.users)
    again = provision(uri, clients=["client-1", "client-2"], admin=admin)
    assert not again.bucket_made
    assert [(user.made, user.secret_key is None) for user in again.users] == [
        (False, True),
        (False, True),
        (True, False),
    ]
    turned = provision(uri, clients=["client-1"], admin=admin, rotate=[SERVER, "client-1"])
    for old, new in zip(first.users, turned.users, strict=True):
        assert old.access_key == new.access_key and new.secret_key not in (None, old.secret_key)
    one = provision(uri, clients=["client-1", "client-2"], admin=admin, rotate=["client-2"])
    assert [user.secret_key is None for user in one.users] == [True, True, False]


def test_a_bucket_is_made_and_keeps_versions_where_asked(admin: Access, minio: Server, uri: str) -> None:
    name = f"lwfed-{uri.split('/')[3][:12]}"
    assert provision(f"s3://{name}", clients=[], admin=admin).bucket_made
    assert "Status" not in minio.client().get_bucket_versioning(Bucket=name)
    assert not provision(f"s3://{name}", clients=[], admin=admin, versioning=True).bucket_made
    assert minio.client().get_bucket_versioning(Bucket=name)["Status"] == "Enabled"


def test_secrets_are_written_for_kubernetes(uri: str, minio: Server, tmp_path: Path) -> None:
    variables = {"MINIO_ROOT_USER": USER, "MINIO_ROOT_PASSWORD": PASSWORD}
    command = ["init", uri, "--clients", "2", "--namespace", "fed", "--pod-endpoint", "http://minio.fed:9000"]
    done = CliRunner().invoke(app, command, env=variables, catch_exceptions=False)
    secrets = list(yaml.safe_load_all(done.stdout))
    assert [secret["metadata"]["name"] for secret in secrets] == [
        "lwfed-store-server", "lwfed-store-client-000", "lwfed-store-client-001",
    ]  # fmt: skip
    assert {(secret["kind"], secret["metadata"]["namespace"]) for secret in secrets} == {("Secret", "fed")}
    assert secrets[1]["stringData"]["AWS_ACCESS_KEY_ID"] == access_key_of(uri, "client-000")
    assert secrets[1]["stringData"]["AWS_ENDPOINT_URL_S3"] == "http://minio.fed:9000"
    again = CliRunner().invoke(app, command, env=variables, catch_exceptions=False)
    assert again.stdout == "" and "3 existed" in again.stderr
    folder = tmp_path / "secrets"
    CliRunner().invoke(app, [*command, "-O", str(folder), "--rotate"], env=variables, catch_exceptions=False)
    files = sorted(folder.iterdir())
    assert [path.name for path in files] == ["client-000.yaml", "client-001.yaml", "server.yaml"]
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}
    before = [path.read_text() for path in files]
    told = CliRunner().invoke(app, [*command, "-O", str(folder), "--json"], env=variables, catch_exceptions=False)
    assert [path.read_text() for path in files] == before, "a secret that was given out stands"
    assert {user["secret_key"] for user in json.loads(told.stdout)["users"]} == {None}


def test_a_server_that_was_lost_gets_its_secrets_back(uri: str, admin: Access, acting: Any, minio: Server) -> None:
    known = {SERVER: "s" * 40, "client-7": "c" * 40}
    users = provision(f"{uri}/new", clients=["client-7"], admin=admin, known=known).users
    assert {user.who: user.secret_key for user in users} == known


def test_who_is_not_the_administrator_is_told(uri: str, minio: Server) -> None:
    nobody = Access(access_key="nobody", secret_key=PASSWORD, endpoint=minio.endpoint)
    wrong = Access(access_key=USER, secret_key="wrong-secret", endpoint=minio.endpoint)
    user = provision(uri, clients=["client-1"], admin=replace(wrong, secret_key=PASSWORD), rotate=["client-1"]).users[
        -1
    ]
    client = Access(access_key=user.access_key, secret_key=user.secret_key, endpoint=minio.endpoint)
    for access in (nobody, wrong, client):
        with pytest.raises(UnreachableError) as caught:
            provision(uri, clients=[], admin=access)
        assert "MINIO_ROOT_USER and MINIO_ROOT_PASSWORD" in caught.value.remedy
        assert "AWS_ACCESS_KEY_ID" not in str(caught.value)
    for lacking in (Access(endpoint=minio.endpoint), Access(endpoint=minio.endpoint, access_key=USER)):
        with pytest.raises(SpecError, match="no administrator is set") as unnamed:
            provision(uri, clients=[], admin=lacking)
        assert unnamed.value.remedy


def test_a_store_is_tried_out(uri: str, tmp_path: Path, s3: Server) -> None:
    for where, conditional in ((uri, True if s3.kind == "minio" else None), (str(tmp_path / "store"), None)):
        done = CliRunner().invoke(app, ["check", where, "--megabytes", "2", "--json"], catch_exceptions=False)
        told = json.loads(done.stdout)
        assert told["good"] and told["whole"] and told["first_wins"] and told["logs"] and told["write_bytes_per_s"] > 0
        assert s3.kind != "minio" or told["conditional"] is conditional
        assert list(open_store(where).list("")) == [], "nothing is left behind"
    assert "the first writer wins" in CliRunner().invoke(app, ["check", str(tmp_path), "--megabytes", "1"]).stdout


def test_policies_are_printed_without_a_server() -> None:
    done = CliRunner().invoke(app, ["policy", "client-001", "--store", "s3://b/p", "--no-list"], catch_exceptions=False)
    assert json.loads(done.stdout) == client_policy("s3://b/p", "client-001")
    done = CliRunner().invoke(app, ["policy", "server", "--store", "s3://b"], catch_exceptions=False)
    assert json.loads(done.stdout) == server_policy("s3://b")
    dry = CliRunner().invoke(app, ["init", "s3://b/p", "--client", "a", "--client", "b", "--dry-run"])
    assert list(json.loads(dry.stdout)["policies"]) == ["server", "a", "b"]


@pytest.mark.parametrize("client", ["*", "client-?", "a/b", "", "..", "${aws:username}", "client 1"])
def test_an_id_that_could_match_others_is_refused(client: str) -> None:
    with pytest.raises(SpecError, match="not a client id"):
        client_policy("s3://bucket", client)


@pytest.mark.parametrize("uri", ["bucket", "s3://", "s3://b*/x", "s3://bucket/x?", "folder/x"])
def test_a_store_that_a_policy_cannot_name_is_refused(uri: str) -> None:
    for make in (server_policy, lambda uri: client_policy(uri, "client-1")):
        with pytest.raises(SpecError, match="names no bucket"):
            make(uri)
