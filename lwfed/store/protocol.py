"""The whole surface of a store: immutable objects, refs, which are small JSON values written last, and logs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

Data = bytes | bytearray | memoryview


class Store(Protocol):
    """Objects, refs and logs under keys such as `stages/<key>/plan.json`.

    Whatever is asked may raise UnreachableError where the store does not answer or refuses.

    Attributes:
        uri: Where it is; `open_store` opens it again.
        verifies_writes: Whether the store itself checks what it is sent, so that an object of the right size is whole.
    """

    uri: str

    @property
    def verifies_writes(self) -> bool:
        """See the attributes."""
        ...

    def put(self, key: str, chunks: Iterable[Data]) -> int:
        """Writes an object whole or not at all; equal keys hold equal bytes. Gives its length in bytes.

        Raises:
            DiskFullError: There is no space left.
        """
        ...

    def get(self, key: str, *, start: int = 0, stop: int | None = None) -> bytearray:
        """Reads an object, or its bytes from `start` to before `stop`.

        Raises:
            CheckpointError: There is no such object, or it is shorter.
        """
        ...

    def read_into(self, key: str, buffers: Sequence[memoryview | bytearray], *, nbytes: int | None = None) -> None:
        """Reads an object from its start into some memory, one buffer after the other.

        Args:
            key: Which object.
            buffers: What is filled, in order.
            nbytes: The object's length; None: that of the buffers together.

        Raises:
            CheckpointError: There is no such object, or it has another length.
        """
        ...

    def fetch(self, key: str, *, to: Path | None = None) -> Path:
        """Returns a local file with the object's bytes, to be read and left alone. Raises as `get` does.

        Args:
            key: Which object.
            to: Where the file shall be; it must not exist. None: wherever the store has or puts it.
        """
        ...

    def has(self, key: str) -> bool:
        """Whether there is such an object or ref; see `read_log` for logs."""
        ...

    def size(self, key: str) -> int | None:
        """Returns an object's length in bytes, None where there is none."""
        ...

    def list(self, prefix: str) -> Iterator[str]:
        """Yields the keys that start with a prefix, sorted; a log is one key."""
        ...

    def delete(self, *keys: str) -> None:
        """Removes objects, refs or logs; nothing happens where there is none."""
        ...

    def read_ref(self, key: str) -> Any | None:
        """Reads a ref; None where there is none. Raises CheckpointError where it is not JSON."""
        ...

    def write_ref(self, key: str, value: Any, *, if_absent: bool = False) -> bool:
        """Writes a ref at once. With `if_absent` the first writer wins; returns whether this call wrote it."""
        ...

    def append(self, key: str, data: Data) -> None:
        """Adds bytes to the end of a log; a log has one writer and is never part of a result."""
        ...

    def read_log(self, key: str) -> bytes:
        """Reads all that was appended; nothing where there is no log."""
        ...
