"""Laws of the store in a bucket: large objects in parts, bounded memory, damage noticed, a server's gaps made up."""

from __future__ import annotations

import hashlib
import multiprocessing
import secrets
import tracemalloc
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from botocore import auth

from lwfed.store.blocks import read_block, write_block
from lwfed.store.cache import BlockCache
from lwfed.store.counting import CountingStore
from lwfed.store.manifest import block_key
from lwfed.store.opening import open_store
from lwfed.store.pieces import parts_of
from lwfed.store.s3 import transfer as s3_transfer
from lwfed.store.s3.store import S3Store
from lwfed.store.s3.transfer import THREADS
from lwfed.types.errors import CheckpointError, DiskFullError, SpecError, UnreachableError
from tests.s3 import Server, serving
from tests.unit.store.conftest import BUCKET

MIB = 1 << 20
PART = 5 * MIB


@contextmanager
def hooked(store: S3Store, event: str, handler: Callable[..., None]) -> Iterator[None]:
    """Lets a handler see or change what is asked of the server."""
    events = store.connection.client.meta.events
    events.register_first(event, handler)
    try:
        yield
    finally:
        events.unregister(event, handler)


@contextmanager
def asked(store: S3Store) -> Iterator[list[tuple[str, int]]]:
    """Notes operations and the bytes of their bodies, as they go over the wire."""
    seen: list[tuple[str, int]] = []

    def note(request: Any, operation_name: str, **_: Any) -> None:
        seen.append((operation_name, len(request.body or b"")))

    with hooked(store, "request-created.s3", note):
        yield seen


def in_bucket(store: S3Store, server: Server) -> list[str]:
    found = server.client().list_objects_v2(Bucket=BUCKET, Prefix=store.uri.split("/", 3)[3] + "/")
    return [item["Key"] for item in found.get("Contents", ())]


@pytest.mark.parametrize("sizes", [[], [0], [3], [10], [4, 6], [11], [25, 1], [1] * 21, [10, 10], [7, 0, 30]])
def test_parts_hold_the_stream_and_all_but_the_last_are_full(sizes: list[int]) -> None:
    chunks = [secrets.token_bytes(size) for size in sizes]
    parts = list(parts_of(chunks, 10))
    assert b"".join(parts) == b"".join(chunks)
    assert all(len(part) == 10 for part in parts[:-1]) and len(parts[-1]) <= 10
    assert len(parts[-1]) > 0 or len(parts) == 1


def test_a_large_object_travels_in_parts_and_ranges(uri: str, s3: Server) -> None:
    store = S3Store(uri, part_bytes=PART)
    content = secrets.token_bytes(2 * PART + 12_345)
    chunks = [memoryview(content)[:7], memoryview(content)[7 : 2 * PART + 1], content[2 * PART + 1 :]]
    with asked(store) as seen:
        assert store.put("x", chunks) == len(content)
    assert [name for name, _ in seen if name != "UploadPart"] == ["CreateMultipartUpload", "CompleteMultipartUpload"]
    assert sorted(size for name, size in seen if name == "UploadPart") == [12_345, PART, PART]
    with asked(store) as seen:
        assert store.get("x") == content
    assert [name for name, _ in seen].count("GetObject") == 2
    buffers = [bytearray(1), bytearray(s3_transfer.RANGE_BYTES), bytearray(len(content) - s3_transfer.RANGE_BYTES - 1)]
    store.read_into("x", buffers)
    assert b"".join(buffers) == content
    assert store.get("x", start=PART - 3, stop=2 * PART + 9) == content[PART - 3 : 2 * PART + 9]
    assert store.fetch("x").read_bytes() == content


def test_parts_of_a_write_that_fails_are_dropped(uri: str, s3: Server) -> None:
    store = S3Store(uri, part_bytes=PART)

    def failing() -> Iterator[bytes]:
        for _ in range(4):
            yield bytes(PART)
        raise RuntimeError("pulled")

    with asked(store) as seen, pytest.raises(RuntimeError, match="pulled"):
        store.put("x", failing())
    assert seen[-1][0] == "AbortMultipartUpload" and not store.has("x")
    left = s3.client().list_multipart_uploads(Bucket=BUCKET, Prefix=store.uri.split("/", 3)[3] + "/x")
    assert not left.get("Uploads")


@pytest.mark.slow
def test_memory_is_bounded_by_the_parts_in_flight(uri: str) -> None:
    store = S3Store(uri, part_bytes=PART)
    store.write_ref("warm", 1)
    chunk = bytes(MIB)
    tracemalloc.start()
    try:
        assert store.put("x", (chunk for _ in range(100))) == 100 * MIB
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < (THREADS + 3) * PART + 2 * MIB, f"{peak / MIB:.0f} MiB at most for an object of 100"


def test_bytes_counted_are_bytes_sent_and_received(uri: str) -> None:
    store = S3Store(uri, part_bytes=PART)
    counting = CountingStore(store)
    tensors = {"image.stem.w": torch.arange(3 * MIB, dtype=torch.float32), "image.stem.b": torch.ones(7)}
    received: list[int] = []

    def note(parsed: dict[str, Any], **_: Any) -> None:
        received.append(parsed["ContentLength"])

    with asked(store) as seen:
        block = write_block(counting, tensors)
    bodies = [size for name, size in seen if name in ("PutObject", "UploadPart")]
    assert sum(bodies) == counting.bytes_written == block.nbytes and len(bodies) == 3
    with hooked(store, "after-call.s3.GetObject", note):
        read = read_block(counting, block_key(block), block)
    assert sum(received) == counting.bytes_read == block.nbytes
    assert all(torch.equal(read[name], tensors[name]) for name in tensors)


def test_a_block_that_is_there_is_known_by_its_length(uri: str) -> None:
    store = open_store(uri)
    assert isinstance(store, S3Store) and store.verifies_writes
    tensors = {"image.stem.w": torch.arange(100, dtype=torch.float32)}
    block = write_block(store, tensors)
    with asked(store) as seen:
        write_block(store, tensors)
    assert [name for name, _ in seen] == ["HeadObject"]
    store.put(block_key(block), [b"half"])
    write_block(store, tensors)
    assert torch.equal(read_block(store, block_key(block), block)["image.stem.w"], tensors["image.stem.w"])


def test_a_damaged_object_is_refused(uri: str, tmp_path: Path) -> None:
    store = open_store(uri)
    block = write_block(store, {"image.stem.w": torch.arange(100, dtype=torch.float32)})
    content = bytes(store.get(block_key(block)))
    for position in (3, block.nbytes - 50):
        store.put(block_key(block), [content[:position] + b"\x55" + content[position + 1 :]])
        for read in (
            lambda: read_block(store, block_key(block), block),
            lambda: BlockCache(tmp_path / "cache").read(store, block),
        ):
            with pytest.raises(CheckpointError, match="corrupted") as caught:
                read()
            assert "--fresh" in caught.value.remedy
    for damaged in (content[:-1], content + b"x", b""):
        store.put(block_key(block), [damaged])
        with pytest.raises(CheckpointError, match="corrupted"):
            read_block(store, block_key(block), block)
    store.put(block_key(block), [content])
    cache = BlockCache(tmp_path / "cache")
    assert cache.read(store, block)
    store.delete(block_key(block))
    assert cache.read(store, block), "what the store has lost the cache still has"


def test_what_is_put_is_hashed_for_the_server(uri: str, minio: Server) -> None:
    """A body that changes on its way is not stored: its sha256 is part of what is signed."""
    store = S3Store(uri, patience_s=0.5)

    def flip(request: Any, **_: Any) -> None:
        request.body = bytes([request.body[0] ^ 1]) + bytes(request.body[1:])

    with hooked(store, "before-send.s3.PutObject", flip), pytest.raises(UnreachableError, match=r"SHA256|400|Digest"):
        store.put("x", [b"whole"])
    assert not store.has("x")


def test_the_server_and_the_digest_hash_a_body_once_each(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own digest cannot be signed: it is of each tensor, the signature's of each part."""
    signed: list[int] = []

    def sha256(data: Any = b"") -> Any:
        signed.append(memoryview(data).nbytes)
        return hashlib.sha256(data)

    store = S3Store(uri, part_bytes=PART)
    store.write_ref("warm", 1)
    monkeypatch.setattr(auth, "sha256", sha256)
    block = write_block(store, {"image.stem.w": torch.arange(3 * MIB, dtype=torch.float32)})
    bodies = [nbytes for nbytes in signed if nbytes > 10_000]
    assert sum(bodies) <= block.nbytes < sum(bodies) + 10_000 and len(bodies) == 3
    signed.clear()
    read_block(store, block_key(block), block)
    assert max(signed, default=0) < 10_000


def test_a_server_that_ignores_conditions_is_found_out(uri: str, s3: Server) -> None:
    def ignore(request: Any, **_: Any) -> None:
        if "If-None-Match" in request.headers:
            del request.headers["If-None-Match"]

    knowing = S3Store(uri)
    assert knowing.write_ref("known", 1, if_absent=True) and knowing.conditional is (s3.kind == "minio")
    store = S3Store(uri)
    with hooked(store, "before-sign.s3.PutObject", ignore):
        assert store.write_ref("r", 1, if_absent=True)
        assert store.conditional is False
        assert not store.write_ref("r", 2, if_absent=True) and store.read_ref("r") == 1
        assert store.write_ref("other", 1, if_absent=True)
        store.append("log", b"1")
        store.append("log", b"2")
        assert store.read_log("log") == b"12"


def test_a_poll_is_one_request_and_brings_nothing_if_nothing_changed(uri: str, s3: Server) -> None:
    store = S3Store(uri)
    store.write_ref("r", {"n": 1})
    seen = store.read_ref_if_changed("r", None)
    assert seen is not None
    answers: list[tuple[int, Any]] = []

    def note(response_dict: dict[str, Any], **_: Any) -> None:
        answers.append((response_dict["status_code"], response_dict["body"]))

    with asked(store) as requests, hooked(store, "response-received.s3", note):
        assert store.read_ref_if_changed("r", seen.mark) is None
    assert requests == [("GetObject", 0)]
    assert answers == [(304, b"")] or s3.kind != "minio"


def test_a_server_that_ignores_conditions_may_be_polled(uri: str) -> None:
    def ignore(request: Any, **_: Any) -> None:
        if "If-None-Match" in request.headers:
            del request.headers["If-None-Match"]

    store = S3Store(uri)
    store.write_ref("r", {"n": 1})
    with hooked(store, "before-sign.s3.GetObject", ignore):
        seen = store.read_ref_if_changed("r", None)
        assert seen is not None and store.read_ref_if_changed("r", seen.mark) is None
        store.write_ref("r", {"n": 2})
        again = store.read_ref_if_changed("r", seen.mark)
        assert again is not None and again.value == {"n": 2}


def test_two_writers_of_a_log_lose_nothing(uri: str) -> None:
    first, second = open_store(uri), open_store(uri)
    for number in range(3):
        first.append("log", f"a{number} ".encode())
        second.append("log", f"b{number} ".encode())
    assert sorted(first.read_log("log").split()) == [b"a0", b"a1", b"a2", b"b0", b"b1", b"b2"]


def test_keys_are_listed_page_by_page(uri: str) -> None:
    store = S3Store(uri)
    keys = [f"{'abc'[n % 3]}/{n:02d}" for n in range(23)]
    for key in keys:
        store.put(key, [b""])

    def small(params: dict[str, Any], **_: Any) -> None:
        params["MaxKeys"] = 4

    with hooked(store, "provide-client-params.s3.ListObjectsV2", small), asked(store) as seen:
        assert list(store.list("")) == sorted(keys)
    assert len(seen) == 6


def test_many_objects_are_deleted_in_one_request(uri: str) -> None:
    store = S3Store(uri)
    keys = [f"updates/{n}.safetensors" for n in range(40)]
    for key in keys:
        store.put(key, [b"x"])
    with asked(store) as seen:
        store.delete(*keys[1:], "updates/none.json")
    assert [operation for operation, _ in seen] == ["DeleteObjects"]
    assert list(store.list("")) == keys[:1]


def test_a_server_that_refuses_bulk_deletes_gets_single_ones(uri: str, minio: Server) -> None:
    store = S3Store(uri)
    keys = [f"updates/{n:02d}.safetensors" for n in range(20)]

    def damage(request: Any, **_: Any) -> None:
        request.data = b"<Delete></Delete>"  # not what its checksum says

    for _ in range(2):
        for key in keys:
            store.put(key, [b"x"])
        with hooked(store, "before-sign.s3.DeleteObjects", damage), asked(store) as seen:
            store.delete(*keys[1:])
        assert list(store.list("")) == keys[:1]
    assert [operation for operation, _ in seen] == ["DeleteObject"] * 19, "it is asked once"


def test_a_forked_process_has_a_client_of_its_own(uri: str) -> None:
    store = S3Store(uri)
    store.write_ref("first", 1)

    def child() -> None:
        for number in range(20):
            store.write_ref(f"child/{number}", number)
        assert store.read_ref("first") == 1

    racers = [multiprocessing.get_context("fork").Process(target=child) for _ in range(2)]
    for racer in racers:
        racer.start()
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda n: store.write_ref(f"parent/{n}", n), range(40)))
    for racer in racers:
        racer.join(30)
        assert racer.exitcode == 0
    assert len(list(store.list("child/"))) == 20 and len(list(store.list("parent/"))) == 40


def test_what_was_fetched_goes_with_the_store(uri: str) -> None:
    store = S3Store(uri)
    store.put("runs/r/report.html", [b"<p>"])
    path = store.fetch("runs/r/report.html")
    store.put("runs/r/report.html", [b"<p>again"])
    assert store.fetch("runs/r/report.html") == path and path.read_bytes() == b"<p>again"
    del store
    assert not path.exists()


def test_uris(uri: str, s3: Server) -> None:
    store = open_store(f"{uri}/")
    assert store.uri == uri == open_store(store.uri).uri
    store.put("a/b", [b"x"])
    assert in_bucket(store, s3) == [f"{uri.split('/', 3)[3]}/a/b"]  # type: ignore[arg-type]
    assert list(open_store(uri.rpartition("/")[0]).list("")) == ["store/a/b"], "a prefix is a store of its own"
    assert open_store("s3://bucket").uri == "s3://bucket"
    for wrong in ("s3://", "s3:///x", "s3://a b/x"):
        with pytest.raises(SpecError, match="names no bucket"):
            open_store(wrong)
    with pytest.raises(CheckpointError, match="not a key"):
        open_store("s3://bucket/a/../b")


def test_a_store_in_a_folder_never_loads_boto3() -> None:
    import subprocess
    import sys

    code = (
        "import sys; from lwfed.store.opening import open_store; import lwfed.cli.store; "
        "open_store('/nowhere'); sys.exit('botocore' in sys.modules or 'minio' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_full_server_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import subprocess

    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=40m", "tmpfs", str(folder)], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"a small file system cannot be mounted here: {mounted.stderr.strip()}")
    try:
        with serving(folder) as server:
            if server is None or server.kind != "minio":
                pytest.skip("needs MinIO: `.ci/minio` builds it")
            server.make_bucket("full")
            for name, value in server.environment().items():
                monkeypatch.setenv(name, value)
            store = S3Store("s3://full/x", part_bytes=PART, patience_s=5)
            store.write_ref("r", 1)
            with pytest.raises(DiskFullError, match="no space left") as caught:
                store.put("x", (bytes(MIB) for _ in range(60)))
            assert caught.value.exit_code == 16 and "--run-id" in caught.value.remedy
            assert store.read_ref("r") == 1 and not store.has("x")
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)
