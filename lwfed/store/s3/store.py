"""The store in a bucket of any S3 server (MinIO, SeaweedFS, AWS), where conditional writes let the first writer win.

S3 has no append: each piece of a log is a small object `<key>.d/<number>`. No key of an object or ref may have that
form.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
import threading
import uuid
import weakref
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

from lwfed import environment
from lwfed.store.ahead import parallel_map
from lwfed.store.keys import checked, parsed_ref, truncated_object, wrong_length
from lwfed.store.protocol import Data, Seen, Store
from lwfed.store.s3.client import Connection, RefusedError
from lwfed.store.s3.transfer import PART_BYTES, S3Object
from lwfed.types.canonical import by_line
from lwfed.types.errors import CheckpointError
from lwfed.types.uris import bucket_of

LOG_PIECE = re.compile(r"(.+)\.d/(\d{9})")
TOGETHER = 8
WRITER = "lwfed-writer"
UNSUPPORTED = 501
MANY = 16
"""Objects from which on deletes are sent together."""
PAGE = 1000
"""The most objects of such a request."""
NO_BULK = (400, 403, 404, 405, 411, UNSUPPORTED)
"""Statuses after which objects are deleted one by one, which says what is wrong if that fails too."""
REFUSALS = (409, 412, UNSUPPORTED)
"""Statuses of a conditional write that did not write."""
NEVER_LOGS = (".json", ".safetensors")
"""Endings that a log's key never has: deleting such a key does not list pieces."""


class S3Store(Store):
    """A store in a bucket.

    Args:
        uri: `s3://bucket/prefix`.
        part_bytes: Length of the parts of a large object's upload.
        patience_s: Seconds of retries while the server is down; None: `LWFED_S3_PATIENCE_S`.

    Attributes:
        conditional: Whether the server supports conditional writes; None until that is known.

    Raises:
        SpecError: The URI names no bucket.
    """

    verifies_writes = True

    def __init__(self, uri: str, *, part_bytes: int = PART_BYTES, patience_s: float | None = None) -> None:
        bucket, prefix = bucket_of(uri, key="store.uri")
        prefix = checked(prefix)
        self.uri = f"s3://{bucket}/{prefix}".rstrip("/")
        self.connection = Connection(
            self.uri, bucket, patience_s=environment.s3_patience_s() if patience_s is None else patience_s
        )
        self._prefix = f"{prefix}/" if prefix else ""
        self._part_bytes = part_bytes
        self.conditional: bool | None = None
        self._deletes_together = True
        self._log_lock = threading.Lock()
        self._numbers: dict[str, int] = {}

    def put(self, key: str, chunks: Iterable[Data]) -> int:
        """Writes an object; see `Store.put`."""
        return self._object(key).upload(chunks, part_bytes=self._part_bytes)

    def put_named(self, folder: str, chunks: Iterable[Data], *, name: Callable[[], str | None]) -> int:
        """Writes an object once its name is known, since S3 asks for it first; see `Store.put_named`."""
        held = list(chunks)
        named = name()
        return 0 if named is None else self.put(f"{folder}/{named}", held)

    def get(self, key: str, *, start: int = 0, stop: int | None = None) -> bytearray:
        """Reads an object or a part of it; see `Store.get`."""
        source = self._object(key)
        if stop is None or stop <= start:
            size = source.length()
            if stop is not None and stop > size:
                raise truncated_object(key, byte=stop)
            stop = size if stop is None else stop
        data = bytearray(max(0, stop - start))
        if data:
            source.download([memoryview(data)], start=start)
        return data

    def read_parts(
        self, key: str, buffers: Sequence[memoryview | bytearray], *, start: int = 0, total: int | None = None
    ) -> Generator[int, None, None]:
        """Reads an object into buffers, a few ranges at a time; see `Store.read_parts`."""
        views = [memoryview(buffer).cast("B") for buffer in buffers]
        held = sum(map(len, views))
        if total is not None and held > total:
            raise wrong_length(key, found=total, expected=held)
        source = self._object(key)
        if held:
            yield from source.arriving(views, start=start, total=total)
        elif total is not None and (size := source.length()) != total:
            raise wrong_length(key, found=size, expected=total)

    def fetch(self, key: str, *, to: Path | None = None) -> Path:
        """Downloads an object to a file: to `to`, or to one that is deleted when the process ends."""
        source = self._object(key)
        path = to or self._scratch / key
        source.save(path, size=source.length())
        return path

    def size(self, key: str) -> int | None:
        """Returns an object's length."""
        return self._object(key).size()

    def list(self, prefix: str) -> Iterator[str]:
        """Yields the keys that start with a prefix, sorted; a log is one key."""
        found = set()
        for key in self._listed(checked(prefix)):
            piece = LOG_PIECE.fullmatch(key)
            found.add(piece[1] if piece else key)
        yield from sorted(key for key in found if key.startswith(prefix))

    def folders(self, prefix: str) -> Iterator[str]:
        """Yields the names of the folders directly below a prefix; see `Store.folders`."""
        start = self._prefix + checked(prefix)

        def found(client: Any) -> Sequence[str]:
            pages = client.get_paginator("list_objects_v2").paginate(
                Bucket=self.connection.bucket, Prefix=start, Delimiter="/"
            )
            return [one["Prefix"] for page in pages for one in page.get("CommonPrefixes", ())]

        folders = self.connection.request(found, about=f"to list {prefix or 'its folders'}")
        yield from sorted(folder[len(start) : -1] for folder in folders)

    def delete(self, *keys: str) -> None:
        """Deletes objects, refs or logs; ignores those that do not exist."""
        objects = [self._object(key) for key in keys]
        for key in keys:
            if not key.endswith(NEVER_LOGS):
                objects += self._pieces(key)
                with self._log_lock:
                    self._numbers.pop(key, None)
        parallel_map(S3Object.delete, self._delete_together(objects), threads=TOGETHER)

    def read_ref(self, key: str) -> Any | None:
        """Reads a ref; None if it does not exist."""
        content = self._object(key).read()
        return None if content is None else parsed_ref(key, content)

    def read_ref_if_changed(self, key: str, mark: str | None) -> Seen | None:
        """Reads a ref unless its ETag is the mark (`If-None-Match`); see `Store.read_ref_if_changed`."""
        found = self._object(key).read_unless(mark)
        if found is None:
            return None
        content, tag = found
        return Seen(None, None) if content is None else Seen(parsed_ref(key, content), tag)

    def write_ref(self, key: str, value: Any, *, if_absent: bool = False) -> bool:
        """Writes a ref atomically; see `Store.write_ref`."""
        if if_absent:
            return self._write_first(self._object(key), by_line(value))
        self._object(key).write(by_line(value))
        return True

    def append(self, key: str, data: Data) -> None:
        """Appends a piece to a log."""
        log = self._object(key)
        with self._log_lock:
            number = self._numbers.get(key)
            if number is None:
                number = self._next_number(key)
            while not self._write_first(replace(log, key=f"{log.key}.d/{number:09d}"), bytes(data)):
                number = max(number + 1, self._next_number(key))  # another writer wrote pieces
            self._numbers[key] = number + 1

    def read_log(self, key: str) -> bytes:
        """Reads a log, piece by piece."""
        pieces = parallel_map(S3Object.read, self._pieces(key), threads=TOGETHER)
        return b"".join(piece or b"" for piece in pieces)

    def _delete_together(self, objects: Sequence[S3Object]) -> Sequence[S3Object]:
        """Deletes many objects, 1,000 per request; returns those that must be deleted one by one.

        These are few objects, and all where the server refuses bulk deletes: servers check their bodies differently.
        """
        if len(objects) < MANY or not self._deletes_together:
            return objects
        left: list[S3Object] = []
        for start in range(0, len(objects), PAGE):
            some = {item.key: item for item in objects[start : start + PAGE]}
            wanted = {"Objects": [{"Key": key} for key in some], "Quiet": True}

            def delete(client: Any, wanted: dict[str, Any] = wanted) -> dict[str, Any]:
                answer: dict[str, Any] = client.delete_objects(Bucket=self.connection.bucket, Delete=wanted)
                return answer

            try:
                answer = self.connection.request(delete, about="to delete", expected=NO_BULK)
            except RefusedError:
                self._deletes_together = False
                return [*left, *objects[start:]]
            left += [some[error["Key"]] for error in answer.get("Errors", ()) if error.get("Key") in some]
        return left

    def _pieces(self, key: str) -> Sequence[S3Object]:
        """Returns a log's pieces, in order."""
        log = self._object(key)
        names = sorted(name for name in self._listed(f"{key}.d/") if LOG_PIECE.fullmatch(name))
        return [replace(log, key=self._prefix + name) for name in names]

    def _next_number(self, key: str) -> int:
        """Returns the number of a log's next piece."""
        pieces = self._pieces(key)
        return int(pieces[-1].key.rpartition("/")[2]) + 1 if pieces else 0

    def _object(self, key: str) -> S3Object:
        name = PurePosixPath(checked(key)).as_posix()
        if name == ".":
            raise CheckpointError(f"`{key}` is not a key", remedy="keys are relative and hold no `..`")
        return S3Object(self.connection, self._prefix + name, key)

    def _listed(self, prefix: str) -> Sequence[str]:
        """Returns the keys of objects in the bucket below the store's prefix."""

        def keys(client: Any) -> Sequence[str]:
            pages = client.get_paginator("list_objects_v2").paginate(
                Bucket=self.connection.bucket, Prefix=self._prefix + prefix
            )
            return [item["Key"][len(self._prefix) :] for page in pages for item in page.get("Contents", ())]

        found = self.connection.request(keys, about=f"to list {prefix or 'its keys'}")
        return [key for key in found if not key.endswith("/")]  # without the folders that a web console made

    def _write_first(self, target: S3Object, body: bytes) -> bool:
        """Writes an object that must not exist yet. Returns whether this call wrote it.

        The server decides (`If-None-Match: *`). The first such write finds out whether the server supports that. If it
        does not, the last of several simultaneous writers wins, and each checks afterwards whether it was the one.
        """
        token = uuid.uuid4().hex
        marked: dict[str, Any] = {"Metadata": {WRITER: token}}
        if self.conditional is not True and target.head() is not None:
            return False
        if self.conditional is not False:
            try:
                target.write(body, expected=REFUSALS, IfNoneMatch="*", **marked)
                if self.conditional is None:
                    self.conditional = _is_refused(target, body, marked)
                return self.conditional or _is_mine(target, body, token)
            except RefusedError as refused:
                self.conditional = refused.status != UNSUPPORTED
                if self.conditional:  # if an answer was lost, this call may be the writer
                    return refused.repeated and _is_mine(target, body, token)
        target.write(body, **marked)
        return _is_mine(target, body, token)

    @cached_property
    def _scratch(self) -> Path:
        """A folder that is deleted with the store, but not by a forked process."""
        folder = Path(tempfile.mkdtemp(prefix="lwfed-"))
        weakref.finalize(self, _remove_scratch, folder, os.getpid())
        return folder


def _remove_scratch(folder: Path, process: int) -> None:
    if os.getpid() == process:
        shutil.rmtree(folder, ignore_errors=True)


def _is_refused(target: S3Object, body: bytes, marked: dict[str, Any]) -> bool:
    """Whether the server refuses to write an object again that must not exist."""
    try:
        target.write(body, expected=REFUSALS, IfNoneMatch="*", **marked)
    except RefusedError as refused:
        return refused.status != UNSUPPORTED
    return False


def _is_mine(target: S3Object, body: bytes, token: str) -> bool:
    """Whether this call wrote an object, by its mark, or by its bytes if the server does not store metadata."""
    answer = target.head()
    if answer is None:
        return False
    marks = {mark.lower(): value for mark, value in answer.get("Metadata", {}).items()}
    return marks[WRITER] == token if WRITER in marks else target.read() == body
