"""The whole interface of a store: immutable objects, refs (small JSON values, written last), and logs."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

Data = bytes | bytearray | memoryview


@dataclass(frozen=True)
class Seen:
    """A ref as a process that polls it saw it.

    Attributes:
        value: Its value; None if it does not exist.
        mark: What the store knows this version by; None if the ref does not exist, or the store marks no versions.
    """

    value: Any | None
    mark: str | None


class Store(Protocol):
    """Objects, refs and logs under keys such as `stages/<key>/plan.json`.

    Every method may raise UnreachableError if the store does not answer or refuses.

    Attributes:
        uri: Its URI, for `open_store`.
        verifies_writes: Whether the store itself verifies what it receives, so that an object of the right length is
            intact.
    """

    uri: str
    verifies_writes: bool

    def put(self, key: str, chunks: Iterable[Data]) -> int:
        """Writes an object completely or not at all; equal keys have equal bytes. Returns its length in bytes.

        Raises:
            DiskFullError: There is no space left.
        """
        ...

    def put_named(self, folder: str, chunks: Iterable[Data], *, name: Callable[[], str | None]) -> int:
        """Writes an object whose name holds a digest of its bytes, so that they can be hashed while they are written.

        Args:
            folder: The key of the object's folder.
            chunks: Its bytes; the store takes all of them before it asks for the name. They must not change until the
                call returns.
            name: Returns its name in the folder; None: it need not be written.

        Returns:
            Its length in bytes; 0 if it was not written.

        Raises:
            DiskFullError: There is no space left.
        """
        ...

    def get(self, key: str, *, start: int = 0, stop: int | None = None) -> bytearray:
        """Reads an object, or its bytes from `start` to before `stop`.

        Raises:
            CheckpointError: The object does not exist, or is shorter.
        """
        ...

    def read_into(self, key: str, buffers: Sequence[memoryview | bytearray], *, nbytes: int | None = None) -> None:
        """Reads an object from its start into buffers, one after the other.

        Args:
            key: The object's key.
            buffers: The buffers to fill, in order.
            nbytes: The object's length; None: the total length of the buffers.

        Raises:
            CheckpointError: The object does not exist, or has another length.
        """
        total = sum(memoryview(buffer).nbytes for buffer in buffers) if nbytes is None else nbytes
        for _ in self.read_parts(key, buffers, total=total):
            pass

    def read_parts(
        self, key: str, buffers: Sequence[memoryview | bytearray], *, start: int = 0, total: int | None = None
    ) -> Generator[int, None, None]:
        """Reads an object into buffers, one after the other, so that a caller can use what is there already.

        Args:
            key: The object's key.
            buffers: The buffers to fill, in order.
            start: The first byte to read.
            total: The object's length; None: any sufficient length.

        Yields:
            How many bytes from the start of the first buffer are there so far, at least once per few megabytes.

        Raises:
            CheckpointError: The object does not exist, is shorter, or has another length than `total`.
        """
        ...

    def fetch(self, key: str, *, to: Path | None = None) -> Path:
        """Returns a local file with the object's bytes, which callers must not change. Raises as `get` does.

        Args:
            key: The object's key.
            to: The path of the file, which must not exist yet. None: the store chooses.
        """
        ...

    def has(self, key: str) -> bool:
        """Whether an object or ref exists; see `read_log` for logs."""
        return self.size(key) is not None

    def size(self, key: str) -> int | None:
        """Returns an object's length in bytes; None if it does not exist."""
        ...

    def list(self, prefix: str) -> Iterator[str]:
        """Yields the keys that start with a prefix, sorted; a log is one key."""
        ...

    def folders(self, prefix: str) -> Iterator[str]:
        """Yields the names of the folders directly below a prefix that ends with a slash, sorted."""
        ...

    def delete(self, *keys: str) -> None:
        """Deletes objects, refs or logs; ignores those that do not exist."""
        ...

    def read_ref(self, key: str) -> Any | None:
        """Reads a ref; None if it does not exist. Raises CheckpointError if it is not JSON."""
        ...

    def read_ref_if_changed(self, key: str, mark: str | None) -> Seen | None:
        """Reads a ref unless it is still what it was: for processes that poll one ref, in one request each time.

        Args:
            key: The ref's key.
            mark: The mark of what was seen last; None: nothing, or nothing with a mark, so that the ref is read.

        Returns:
            What is there now, which may be a value equal to the last one; None if nothing has changed.

        Raises:
            CheckpointError: It is not JSON.
        """
        ...

    def write_ref(self, key: str, value: Any, *, if_absent: bool = False) -> bool:
        """Writes a ref atomically. With `if_absent` the first writer wins; returns whether this call wrote it."""
        ...

    def append(self, key: str, data: Data) -> None:
        """Appends bytes to a log; a log has one writer and is never part of a result."""
        ...

    def read_log(self, key: str) -> bytes:
        """Returns all appended bytes; empty if the log does not exist."""
        ...
