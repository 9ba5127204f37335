"""One digest wherever the store is: a folder, or a bucket of a real S3 server, even one that is killed on the way."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lwfed.launch.subprocess import Subprocess
from lwfed.store.counting import CountingStore
from lwfed.store.opening import open_store
from tests.s3 import Server, serving_bucket
from tests.tiny import Finished, run_tiny, tensor_digests


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    yield from serving_bucket(tmp_path_factory.mktemp("s3"), "equivalence")


@pytest.fixture
def bucket(server: Server, monkeypatch: pytest.MonkeyPatch) -> str:
    for name, value in server.environment().items():
        monkeypatch.setenv(name, value)
    return "s3://equivalence"


@pytest.mark.slow
def test_a_run_in_a_bucket_ends_in_the_digest_of_one_in_a_folder(
    bucket: str, server: Server, tmp_path: Path, finished: Finished
) -> None:
    uri = f"{bucket}/whole"
    counting = CountingStore(open_store(uri))
    gone = False

    def interrupt(kind: str, values: dict[str, Any]) -> None:
        nonlocal gone
        if kind == "round" and not gone:  # the server is away for a moment, and nobody notices
            gone = True
            server.kill()
            time.sleep(0.5)
            server.start()

    done = run_tiny(tmp_path, f"store.uri={uri}", store=counting, emit=interrupt)
    assert gone and done.digest == finished.digest
    assert tensor_digests(done.checkpoint(2)) == tensor_digests(finished.checkpoint(2))
    assert set(done.store.list("blocks/")) == set(finished.store.list("blocks/"))
    assert {key.split("/", 2)[2] for key in done.store.list("stages/")} == {
        key.split("/", 2)[2] for key in finished.store.list("stages/")
    }
    for mine, theirs in zip(done.summary["stages"], finished.summary["stages"], strict=True):
        names = ("bytes_up", "bytes_down", "bytes_down_frozen")
        measured, expected = (stage["ledger"]["measured"] for stage in (mine, theirs))
        assert {name: measured[name] for name in names} == {name: expected[name] for name in names}
    written = counting.bytes_written
    again = run_tiny(tmp_path, f"store.uri={uri}", store=counting)
    assert again.digest == done.digest and counting.bytes_written == written, "what is committed is not done again"


@pytest.mark.slow
def test_clients_that_are_forked_ask_by_connections_of_their_own(
    bucket: str, tmp_path: Path, finished: Finished
) -> None:
    uri = f"{bucket}/forked"
    done = run_tiny(
        tmp_path, f"store.uri={uri}", store=open_store(uri),
        launcher=lambda store: Subprocess(store, parallel=2, devices=1, retries=0),
    )  # fmt: skip
    assert done.digest == finished.digest
    assert not [event for event in done.events if event.kind in ("warning", "client_log")]
