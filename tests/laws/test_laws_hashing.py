"""Laws of digests: each byte of a tensor is hashed once when it is written and once when it is read, beside the IO."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lwfed import params
from lwfed.store import blocks
from lwfed.store.blocks import read_block, read_tensor, write_block
from lwfed.store.cache import BlockCache
from lwfed.store.local import LocalStore
from lwfed.store.manifest import block_key
from lwfed.store.protocol import Data
from tests.tiny import run_tiny

WAITS_S = 30.0
LARGE = {
    "image.stem.w": torch.arange(3_000_000.0),
    "image.stem.b": torch.ones(7),
    "image.stem.v": torch.ones(2_000_000),
}
SMALL = {"image.stem.w": torch.arange(100.0), "image.stem.none": torch.empty(0, 3)}


class Hashed:
    """Counts the bytes that tensors' hashes take; what is hashed in one go (names, JSON) is not counted."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.nbytes, self._lock, self._real = 0, threading.Lock(), hashlib.sha256
        self.before_update: Callable[[Any], None] = lambda data: None
        monkeypatch.setattr(hashlib, "sha256", self._make)

    def _make(self, data: bytes = b"") -> Any:
        hashing, real = self, self._real(data)

        class Hasher:
            hexdigest, digest = real.hexdigest, real.digest

            def update(self, data: Any) -> None:
                with hashing._lock:
                    hashing.nbytes += memoryview(data).nbytes
                hashing.before_update(data)
                real.update(data)

        return Hasher()

    def take(self) -> int:
        """Returns the count, and starts again at zero."""
        nbytes, self.nbytes = self.nbytes, 0
        return nbytes


class Moved:
    """Counts the bytes of tensors that all folders write and read: those of blocks without their headers."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.written = self.read = 0
        lock, put_named, read_parts = threading.Lock(), LocalStore.put_named, LocalStore.read_parts

        def put(store: LocalStore, folder: str, chunks: Iterable[Data], *, name: Callable[[], str | None]) -> int:
            def counted() -> Iterator[Data]:
                for number, chunk in enumerate(chunks):
                    with lock:
                        self.written += memoryview(chunk).nbytes if number else 0
                    yield chunk

            return put_named(store, folder, counted(), name=name)

        def read(store: LocalStore, key: str, buffers: Sequence[memoryview], **more: Any) -> Generator[int, None, None]:
            yield from read_parts(store, key, buffers, **more)
            with lock:
                self.read += sum(
                    memoryview(buffer).nbytes for buffer in buffers[0 if more.get("total") is None else 1 :]
                )

        monkeypatch.setattr(LocalStore, "put_named", put)
        monkeypatch.setattr(LocalStore, "read_parts", read)


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> Hashed:
    return Hashed(monkeypatch)


def nbytes_of(tensors: dict[str, Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors.values())


@pytest.mark.parametrize("tensors", [SMALL, LARGE], ids=["small", "large"])
def test_a_byte_is_hashed_once_when_written_and_once_when_read(
    tmp_path: Path, hashed: Hashed, tensors: dict[str, Tensor]
) -> None:
    store = LocalStore(tmp_path / "store")
    block = write_block(store, tensors)
    assert hashed.take() == nbytes_of(tensors)
    read = read_block(store, block_key(block), block)
    assert hashed.take() == nbytes_of(tensors) and all(torch.equal(read[name], tensors[name]) for name in tensors)
    for name, tensor in tensors.items():
        read_tensor(store, block_key(block), block, name)
        assert hashed.take() == tensor.nbytes
    cache = BlockCache(tmp_path / "cache")
    for _ in range(2):
        cache.read(store, block)
        assert hashed.take() == nbytes_of(tensors), "fetched or found, it is read once"


@pytest.mark.parametrize("exchange", ["fp32", "bf16"])
def test_a_run_hashes_what_it_writes_and_reads_and_nothing_else(
    tmp_path: Path, hashed: Hashed, monkeypatch: pytest.MonkeyPatch, exchange: str
) -> None:
    others = 0

    def noted(where: str, nbytes: Callable[[Any], int], real: Callable[[Any], Any]) -> None:
        def work(given: Any) -> Any:
            nonlocal others
            others += nbytes(given)
            return real(given)

        monkeypatch.setattr(where, work)

    noted("lwfed.round.download.describe", nbytes_of, blocks.describe)  # that a published change yields the model
    noted("lwfed.round.forward.digest", lambda tensor: int(tensor.nbytes), params.digest)  # test inputs, not weights
    moved = Moved(monkeypatch)
    run_tiny(tmp_path, f"exchange={{upload: {exchange}, download: {exchange}}}", "levers.prefix_cache=never")
    assert moved.written > 100_000 and hashed.nbytes == moved.written + moved.read + others


def test_the_next_bytes_are_read_while_those_that_are_there_are_hashed(tmp_path: Path, hashed: Hashed) -> None:
    reading = [threading.Event() for _ in range(9)]

    class Store(LocalStore):
        def read_parts(self, *args: Any, **more: Any) -> Generator[int, None, None]:
            for event, there in zip(reading, super().read_parts(*args, **more), strict=False):
                event.set()
                yield there

    store = Store(tmp_path)
    block = write_block(store, {"image.stem.w": torch.arange(4_000_000.0)})
    for event in reading:
        event.clear()
    ahead: list[bool] = []
    hashed.before_update = lambda data: ahead.append(reading[len(ahead) + 1].wait(WAITS_S)) if len(ahead) < 2 else None
    read_block(store, block_key(block), block)
    assert ahead == [True, True], "a part was not read before the one before was hashed"


def test_the_next_bytes_are_hashed_while_those_before_are_written(tmp_path: Path, hashed: Hashed) -> None:
    begun = [threading.Event() for _ in range(5)]
    count = iter(begun)
    hashed.before_update = lambda data: event.set() if (event := next(count, None)) else None
    ahead: list[bool] = []

    class Store(LocalStore):
        def put_named(self, folder: str, chunks: Iterable[Data], *, name: Callable[[], str | None]) -> int:
            def slow() -> Iterator[Data]:
                for number, chunk in enumerate(chunks):  # the first is the header
                    ahead.append(begun[min(number, 4)].wait(WAITS_S))
                    yield chunk

            return super().put_named(folder, slow(), name=name)

    write_block(Store(tmp_path), LARGE)
    assert len(ahead) > 5 and all(ahead)
