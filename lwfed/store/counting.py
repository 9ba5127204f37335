"""A store that counts the tensor bytes it reads and writes: the measured side of the ledger."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterable, Sequence
from pathlib import Path

from lwfed.store.protocol import Data, Store


class CountingStore:
    """Wraps a store and counts the bytes of tensor files; refs and logs pass through uncounted.

    Attributes:
        bytes_read: Bytes of tensor files read.
        bytes_written: Bytes of tensor files written.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._lock = threading.Lock()
        self.bytes_read = 0
        self.bytes_written = 0
        self.uri, self.verifies_writes = store.uri, store.verifies_writes
        self.has, self.size, self.list, self.delete = store.has, store.size, store.list, store.delete
        self.folders = store.folders
        self.read_ref, self.read_ref_if_changed = store.read_ref, store.read_ref_if_changed
        self.write_ref, self.append, self.read_log = store.write_ref, store.append, store.read_log

    def put(self, key: str, chunks: Iterable[Data]) -> int:
        """Writes an object and counts it."""
        count = self._store.put(key, chunks)
        self._count_written(key, count)
        return count

    def put_named(self, folder: str, chunks: Iterable[Data], *, name: Callable[[], str | None]) -> int:
        """Writes an object whose name is known last, and counts it."""
        named: list[str | None] = []

        def noted() -> str | None:
            named.append(name())
            return named[-1]

        count = self._store.put_named(folder, chunks, name=noted)
        self._count_written(named[-1] or "", count)
        return count

    def get(self, key: str, *, start: int = 0, stop: int | None = None) -> bytearray:
        """Reads an object and counts it."""
        data = self._store.get(key, start=start, stop=stop)
        self._count(key, len(data))
        return data

    def read_into(self, key: str, buffers: Sequence[memoryview | bytearray], *, nbytes: int | None = None) -> None:
        """Reads an object into buffers and counts it."""
        self._store.read_into(key, buffers, nbytes=nbytes)
        self._count(key, sum(memoryview(buffer).nbytes for buffer in buffers))

    def read_parts(
        self, key: str, buffers: Sequence[memoryview | bytearray], *, start: int = 0, total: int | None = None
    ) -> Generator[int, None, None]:
        """Reads an object into buffers, part by part, and counts it when all is there."""
        yield from self._store.read_parts(key, buffers, start=start, total=total)
        self._count(key, sum(memoryview(buffer).nbytes for buffer in buffers))

    def fetch(self, key: str, *, to: Path | None = None) -> Path:
        """Fetches an object and counts its whole length."""
        path = self._store.fetch(key, to=to)
        self._count(key, path.stat().st_size)
        return path

    def count_as_read(self, nbytes: int) -> None:
        """Counts bytes that a process of the client's own would have read."""
        with self._lock:
            self.bytes_read += nbytes

    def _count_written(self, key: str, nbytes: int) -> None:
        if key.endswith(".safetensors"):
            with self._lock:
                self.bytes_written += nbytes

    def _count(self, key: str, nbytes: int) -> None:
        if key.endswith(".safetensors"):
            self.count_as_read(nbytes)
