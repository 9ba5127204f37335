"""Tests a store: whether data come back as written, whether the first writer wins, and how fast it is."""

from __future__ import annotations

import secrets
import statistics
import time
from dataclasses import dataclass

from lwfed.store.protocol import Store
from lwfed.types.errors import CheckpointError

FOLDER = "checks"
REFS = 7


@dataclass(frozen=True)
class Trial:
    """The result of a test.

    Attributes:
        whole: Whether an object and a part of it came back as written.
        first_wins: Whether the second writer of a ref learned that it is not the first.
        conditional: Whether the server supports conditional writes; None: not applicable (a folder).
        logs: Whether a log came back in order.
        latency_s: Median seconds to write and read a ref.
        write_bytes_per_s: Speed of writing one large object.
        read_bytes_per_s: Speed of reading it.
    """

    whole: bool
    first_wins: bool
    conditional: bool | None
    logs: bool
    latency_s: float
    write_bytes_per_s: float
    read_bytes_per_s: float

    @property
    def good(self) -> bool:
        """Whether lwfed can work with the store."""
        return self.whole and self.first_wins and self.logs


def try_out(store: Store, *, nbytes: int) -> Trial:
    """Writes, reads and deletes some objects below `checks/`.

    Args:
        store: The store.
        nbytes: Length of the large object.

    Raises:
        UnreachableError: The store does not answer, or refuses.
        DiskFullError: The store has no space left.
    """
    folder = f"{FOLDER}/{secrets.token_hex(8)}"
    big, ref, log = f"{folder}/big", f"{folder}/ref.json", f"{folder}/log.jsonl"
    content = secrets.token_bytes(nbytes)
    try:
        started = time.perf_counter()
        store.put(big, [memoryview(content)])
        written = time.perf_counter()
        back = bytearray(nbytes)
        try:
            store.read_into(big, [back])
            whole = back == content
            read = time.perf_counter()
            whole = whole and store.get(big, start=nbytes // 3, stop=nbytes // 2) == content[nbytes // 3 : nbytes // 2]
        except CheckpointError:
            whole, read = False, time.perf_counter()
        took = []
        for number in range(REFS):
            before = time.perf_counter()
            store.write_ref(f"{folder}/latency.json", {"n": number})
            whole = whole and store.read_ref(f"{folder}/latency.json") == {"n": number}
            took.append(time.perf_counter() - before)
        first = store.write_ref(ref, {"n": 1}, if_absent=True) and not store.write_ref(ref, {"n": 2}, if_absent=True)
        for line in (b"1\n", b"2\n"):
            store.append(log, line)
        return Trial(
            whole=whole,
            first_wins=first and store.read_ref(ref) == {"n": 1},
            conditional=getattr(store, "conditional", None),
            logs=store.read_log(log) == b"1\n2\n",
            latency_s=statistics.median(took),
            write_bytes_per_s=nbytes / (written - started),
            read_bytes_per_s=nbytes / (read - written),
        )
    finally:
        store.delete(big, ref, log, f"{folder}/latency.json")
