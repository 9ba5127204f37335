"""One digest wherever the data lie: a folder, or a bucket of a real S3 server; each object is fetched once."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lwfed.launch.dispatch import run_step
from lwfed.launch.subprocess import Subprocess
from lwfed.run.events import values_of
from lwfed.run.tasks import InspectTask, Place
from lwfed.spec.load import to_values
from lwfed.steps.inspect_client import inspect_client
from lwfed.store.local import LocalStore
from lwfed.types.errors import QuorumError
from tests import inertial
from tests.events import ignore
from tests.s3 import Server, serving_bucket, upload
from tests.tiny import Finished, begun, client_task, run_tiny, tiny_spec, update_tensors

SHORT = "stages.rounds=[1, 1]"
BUCKET = "their-data"
CHANGED = "accelerometer/train/7.npy"
"""One of the second client's files."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    yield from serving_bucket(tmp_path_factory.mktemp("s3"), BUCKET)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return inertial.write_table(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def local(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    return run(tmp_path_factory.mktemp("store"), root)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LWFED_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "objects"


@pytest.fixture
def uri(server: Server, root: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A copy of the folder that nobody has read."""
    for name, value in server.environment().items():
        monkeypatch.setenv(name, value)
    found = f"s3://{BUCKET}/{uuid.uuid4().hex}/steps"
    upload(server, root, found)
    return found


def run(store: Path, root: Path | str, *more: str, **keys: Any) -> Finished:
    return run_tiny(store, *inertial.table_overrides(root, SHORT, *more), **keys)


def fetched(cache: Path) -> dict[str, int]:
    """Returns the files that were fetched, and when they were written."""
    return {str(path.relative_to(cache)): path.stat().st_mtime_ns for path in cache.rglob("*") if path.is_file()}


def put(server: Server, uri: str, path: str, body: bytes) -> None:
    bucket, _, prefix = f"{uri}/{path}".removeprefix("s3://").partition("/")
    server.client().put_object(Bucket=bucket, Key=prefix, Body=body)


def npy(folder: Path, signal: np.ndarray) -> bytes:
    np.save(folder / "one.npy", signal)
    return (folder / "one.npy").read_bytes()


def test_the_digest_is_that_of_the_folder_and_each_object_is_fetched_once(
    uri: str, cache: Path, root: Path, local: Finished, tmp_path: Path
) -> None:
    done = run(tmp_path / "store", uri)
    assert done.digest == local.digest and done.keys == local.keys, "equal work has equal keys"
    assert done.run.data == local.run.data and done.run.spec["data"]["root"] == uri
    before = fetched(cache)
    assert len(before) == sum(path.is_file() for path in root.rglob("*"))
    again = run(tmp_path / "again", f"{uri}/")
    assert again.digest == local.digest and fetched(cache) == before


def test_processes_of_their_own_end_in_the_same_digest(uri: str, local: Finished, tmp_path: Path) -> None:
    done = run(tmp_path, uri, launcher=lambda store: Subprocess(store, parallel=2, devices=1, retries=0))
    assert done.digest == local.digest


def test_clients_have_folders_of_their_own(server: Server, uri: str, root: Path, tmp_path: Path) -> None:
    own = (SHORT, "federation={num_clients: 2, partition: {kind: local}}")
    for who in ("server", "client-000", "client-001"):
        shutil.copytree(root, tmp_path / "own" / who)
    upload(server, tmp_path / "own", f"{uri}/own")
    there, here = (
        run(tmp_path / name, f"{place}/own/{{client}}", *own) for name, place in (("a", uri), ("b", tmp_path))
    )
    assert there.digest == here.digest and there.run.data.clients == {"client-000": 18, "client-001": 18}


def test_a_pod_fetches_the_files_of_its_client_alone_to_the_folder_of_its_pool(
    uri: str, cache: Path, local: Finished, tmp_path: Path
) -> None:
    bench, stage, _ = begun(tmp_path / "store", *inertial.table_overrides(uri, SHORT))
    shutil.rmtree(cache)  # another machine
    told: list[dict[str, Any]] = []
    task = client_task(bench, stage, "client-001", root=uri, shared=str(tmp_path / "pool"))
    run_step(
        "train-client", task, emit=lambda event: told.append(values_of(event)) if event.kind == "fetching" else None
    )
    assert not fetched(cache) and len(fetched(tmp_path / "pool/objects")) == 1 + 2 * inertial.PER_SUBJECT
    assert told[0] == {"done": 1, "total": 1}, "the table"
    assert told[-1] == {"done": 12, "total": 12}
    assert update_tensors(bench, stage, "client-001")
    assert list((tmp_path / "pool/digests").iterdir())


def test_a_pod_inspects_what_only_it_sees(server: Server, uri: str, root: Path, cache: Path, tmp_path: Path) -> None:
    upload(server, root, f"{uri}/own/client-000")
    values = to_values(tiny_spec(tmp_path / "store", *inertial.table_overrides(
        f"{uri}/own/{{client}}", SHORT, "federation={num_clients: 2, partition: {kind: local}}"
    )))  # fmt: skip
    store = LocalStore(tmp_path / "store")
    place = Place(root=f"{uri}/own/{{client}}", shared=str(tmp_path / "pool"))
    task = InspectTask(store=store.uri, run_id="r", client="client-000", spec=values, place=place)
    found = inspect_client(task, store=store, emit=ignore, cache=tmp_path / "elsewhere")
    assert found["num_train"] == 18 and found["bad"] == {}
    assert not fetched(cache) and not (tmp_path / "elsewhere").exists()
    assert len(fetched(tmp_path / "pool/objects")) == 49


@pytest.mark.parametrize("kind", ["jsonl cells", "parquet cells", "csv"])
def test_tables_of_every_kind_lie_in_buckets(
    server: Server, uri: str, local: Finished, tmp_path: Path, kind: str
) -> None:
    upload(server, inertial.write_table(tmp_path / "data", kind=kind), f"{uri}/other")
    assert run(tmp_path / "store", f"{uri}/other").digest == local.digest


def changing(server: Server, uri: str, path: str, body: bytes) -> Callable[[str, dict[str, Any]], None]:
    def change(kind: str, values: dict[str, Any]) -> None:
        if kind == "stage_started":
            put(server, uri, path, body)

    return change


def test_an_object_that_changes_after_the_check_is_named(server: Server, uri: str, tmp_path: Path) -> None:
    other = npy(tmp_path, np.ones((32, 3), np.float32))
    done = run(tmp_path / "store", uri, emit=changing(server, uri, CHANGED, other))
    for record in done.reported("round"):
        assert record["failed"].keys() == {"client-001"}
        assert f"1 file(s) of client-001 changed after the run was prepared, such as {CHANGED}" in str(record["failed"])
    skipping = run(
        tmp_path / "skip", uri, "data.on_bad_example=skip",
        emit=changing(server, uri, "gyroscope/train/8.npy", other),
    )  # fmt: skip
    assert skipping.reported("round")[0]["changed_files"] == {"client-001": 1}


@pytest.mark.parametrize("place", ["bucket", "folder"])
def test_a_table_that_changes_after_the_check_is_named(
    server: Server, uri: str, root: Path, tmp_path: Path, place: str
) -> None:
    table = (root / "table.csv").read_bytes().replace(b"down", b"DOWN", 1)
    folder = shutil.copytree(root, tmp_path / "folder")

    def change(kind: str, values: dict[str, Any]) -> None:
        if kind == "stage_started":
            (folder / "table.csv").write_bytes(table)
            put(server, uri, "table.csv", table)

    where = uri if place == "bucket" else folder
    with pytest.raises(QuorumError, match=rf"the table, captions or labels in {where} changed"):
        run(tmp_path / "store", where, emit=change)


def test_another_object_is_other_data_and_the_old_one_stays_fetched(
    server: Server, uri: str, cache: Path, local: Finished, tmp_path: Path
) -> None:
    first = run(tmp_path / "a", uri)
    before = fetched(cache)
    put(server, uri, CHANGED, npy(tmp_path, np.random.default_rng(0).normal(size=(32, 3))))
    second = run(tmp_path / "b", uri)
    assert first.run.data.version == local.run.data.version != second.run.data.version
    assert second.digest != first.digest
    assert fetched(cache).items() > before.items() and len(fetched(cache)) == len(before) + 1


def test_a_file_that_was_cut_in_the_cache_is_fetched_again(
    uri: str, cache: Path, local: Finished, tmp_path: Path
) -> None:
    run(tmp_path / "a", uri)
    for path in cache.rglob("*.npy"):
        path.write_bytes(path.read_bytes()[:-1])
    assert run(tmp_path / "b", uri).digest == local.digest
