"""The whole surface of a store: immutable objects, and refs, which are small JSON values written last."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol

Data = bytes | bytearray | memoryview


class Store(Protocol):
    """Objects and refs under keys such as `stages/<key>/plan.json`."""

    uri: str

    def put(self, key: str, chunks: Iterable[Data]) -> int:
        """Writes an object whole or not at all; equal keys hold equal bytes. Gives its length in bytes.

        Raises:
            DiskFullError: There is no space left.
            UnreachableError: The store does not answer.
        """
        ...

    def get(self, key: str, *, start: int = 0, stop: int | None = None) -> bytearray:
        """Reads an object, or its bytes from `start` to before `stop`.

        Raises:
            CheckpointError: There is no such object, or it is shorter.
        """
        ...

    def fetch(self, key: str) -> Path:
        """Gives a local file with the object's bytes, to be read and left alone. Raises as `get` does."""
        ...

    def has(self, key: str) -> bool:
        """Whether there is such an object or ref."""
        ...

    def list(self, prefix: str) -> Iterator[str]:
        """Yields the keys that start with a prefix, sorted."""
        ...

    def delete(self, key: str) -> None:
        """Removes an object or ref; nothing happens where there is none."""
        ...

    def read_ref(self, key: str) -> Any | None:
        """Reads a ref; None where there is none. Raises CheckpointError where it is not JSON."""
        ...

    def write_ref(self, key: str, value: Any, *, if_absent: bool = False) -> bool:
        """Writes a ref at once. With `if_absent` the first writer wins; gives whether this call wrote it."""
        ...

    def append(self, key: str, data: Data) -> None:
        """Adds bytes to the end of a log; a log has one writer and is never part of a result."""
        ...
