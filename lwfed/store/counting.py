"""A store that counts the tensor bytes it reads and writes: the measured side of the ledger."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from lwfed.store.protocol import Data, Store


class CountingStore:
    """Wraps a store and counts bytes.

    Attributes:
        bytes_read: Bytes of tensor files read.
        bytes_written: Bytes of tensor files written.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self.uri = store.uri
        self.bytes_read = 0
        self.bytes_written = 0
        self._lock = threading.Lock()

    @property
    def verifies_writes(self) -> bool:
        """See `Store`."""
        return self._store.verifies_writes

    def put(self, key: str, chunks: Iterable[Data]) -> int:
        """Writes an object and counts it."""
        count = self._store.put(key, chunks)
        if key.endswith(".safetensors"):
            with self._lock:
                self.bytes_written += count
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

    def fetch(self, key: str, *, to: Path | None = None) -> Path:
        """Fetches an object and counts its whole length."""
        path = self._store.fetch(key, to=to)
        self._count(key, path.stat().st_size)
        return path

    def count_as_read(self, nbytes: int) -> None:
        """Counts bytes that a process of the client's own would have read."""
        with self._lock:
            self.bytes_read += nbytes

    def has(self, key: str) -> bool:
        """Whether an object or ref exists."""
        return self._store.has(key)

    def size(self, key: str) -> int | None:
        """Returns an object's length."""
        return self._store.size(key)

    def list(self, prefix: str) -> Iterator[str]:
        """Yields keys."""
        return self._store.list(prefix)

    def delete(self, *keys: str) -> None:
        """Deletes objects, refs or logs."""
        self._store.delete(*keys)

    def read_ref(self, key: str) -> Any | None:
        """Reads a ref; refs are not counted."""
        return self._store.read_ref(key)

    def write_ref(self, key: str, value: Any, *, if_absent: bool = False) -> bool:
        """Writes a ref; refs are not counted."""
        return self._store.write_ref(key, value, if_absent=if_absent)

    def append(self, key: str, data: Data) -> None:
        """Appends to a log; logs are not counted."""
        self._store.append(key, data)

    def read_log(self, key: str) -> bytes:
        """Reads a log; logs are not counted."""
        return self._store.read_log(key)

    def _count(self, key: str, nbytes: int) -> None:
        if key.endswith(".safetensors"):
            self.count_as_read(nbytes)
