"""Stores for the laws: a folder, and a prefix of its own in a bucket of a real S3 server that all these tests share."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from lwfed.store.local import LocalStore
from lwfed.store.protocol import Store
from tests.s3 import HOW_TO_GET, Server, serving

BUCKET = "lwfed-tests"


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server | None]:
    """An S3 server with one bucket; None where there is no program."""
    with serving(tmp_path_factory.mktemp("s3")) as server:
        if server is not None:
            server.make_bucket(BUCKET)
        yield server


@pytest.fixture
def s3(server: Server | None, monkeypatch: pytest.MonkeyPatch) -> Server:
    """The server, with the environment that leads to it."""
    if server is None:
        pytest.skip(HOW_TO_GET)
    for name, value in server.environment().items():
        monkeypatch.setenv(name, value)
    return server


@pytest.fixture
def minio(s3: Server) -> Server:
    """The server, where it is MinIO: others decide no races, check no bodies and have no users."""
    if s3.kind != "minio":
        pytest.skip("needs MinIO: `.ci/minio` builds it")
    return s3


@pytest.fixture
def uri(s3: Server) -> str:
    """A store that nobody has used."""
    return f"s3://{BUCKET}/{uuid.uuid4().hex}/store"


@pytest.fixture(params=["folder", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """A store of each kind."""
    if request.param == "folder":
        return LocalStore(tmp_path / "store")
    from lwfed.store.opening import open_store

    return open_store(request.getfixturevalue("uri"))
