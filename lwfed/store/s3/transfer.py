"""Transfers large objects to and from S3: parts are sent while the next is read, ranges are read straight into memory.

boto3's transfer manager is not used: it reads only whole objects, restarts a range that breaks off, counts tries
instead of seconds, and copies everything through a queue. Here bytes are read into the tensors themselves, and all
parts of an object share one time limit.
"""

from __future__ import annotations

import os
import uuid
from collections import deque
from collections.abc import Collection, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from lwfed.patience import Patience
from lwfed.store.ahead import parallel_map
from lwfed.store.keys import changed_object, missing_object, truncated_object, wrong_length
from lwfed.store.pieces import parts_of, ranges_of
from lwfed.store.protocol import Data
from lwfed.store.s3.answers import ForeignError, is_marked
from lwfed.store.s3.client import BrokenOffError, Connection, RefusedError
from lwfed.types.errors import DiskFullError, LwfedError

PART_BYTES = 8 << 20
RANGE_BYTES = 8 << 20
READ_BYTES = 1 << 20
THREADS = 4
NOT_MODIFIED = 304

KINDS = {
    ".json": "application/json", ".jsonl": "application/x-ndjson", ".html": "text/html; charset=utf-8",
    ".svg": "image/svg+xml",
}  # fmt: skip
"""Suffix of a key -> media type, for browsers."""


def kind_of(key: str) -> str:
    """Returns the media type of an object."""
    return next((kind for suffix, kind in KINDS.items() if key.endswith(suffix)), "application/octet-stream")


@dataclass(frozen=True)
class S3Object:
    """An object in a bucket.

    Attributes:
        connection: The bucket.
        key: Its key in the bucket.
        name: Its key in the store, for messages.
        etag: The ETag that it must have, so that all that is downloaded is of one version; None: any.
    """

    connection: Connection
    key: str
    name: str
    etag: str | None = None

    def head(self) -> dict[str, Any] | None:
        """Returns its metadata; None if it does not exist."""
        try:
            answer: dict[str, Any] = self._request("head_object", "to look for", expected=(400, 404))
        except RefusedError as refused:
            if refused.status == 400 or not is_marked(refused.headers):
                self.read()  # HEAD's answer has no body: that of GET says what is wrong, or that this is no S3 server
            if refused.status == 400:
                raise self.connection.refusal(refused, f"to look for {self.name}") from None
            return None
        return answer

    def size(self) -> int | None:
        """Returns its length; None if it does not exist."""
        answer = self.head()
        return None if answer is None else int(answer["ContentLength"])

    def length(self) -> int:
        """Returns its length. Raises CheckpointError if it does not exist."""
        size = self.size()
        if size is None:
            raise missing_object(self.name, store=self.connection.uri)
        return size

    def read(self) -> bytes | None:
        """Returns the bytes of a small object; None if it does not exist."""
        found = self.read_unless(None)
        return None if found is None else found[0]

    def read_unless(self, etag: str | None) -> tuple[bytes | None, str | None] | None:
        """Returns the bytes and ETag of a small object, None for both if it does not exist; None if it has this ETag.

        A server that ignores the condition sends the object again.
        """
        unless = {} if etag is None else {"IfNoneMatch": etag}

        def read(client: Any) -> tuple[bytes, str | None]:
            answer = client.get_object(Bucket=self.connection.bucket, Key=self.key, **unless)
            return bytes(answer["Body"].read()), answer.get("ETag")

        try:
            found = self.connection.request(read, about=f"to read {self.name}", expected=(NOT_MODIFIED, 404))
        except RefusedError as refused:
            return None if refused.status == NOT_MODIFIED else (None, None)
        return None if etag is not None and found[1] == etag else found

    def write(self, body: Data, *, expected: Collection[int] = (), **more: Any) -> None:
        """Writes a small object; `more` are parameters of S3's PutObject. For `expected` see `Connection.request`."""
        self._request("put_object", "to write", expected=expected, Body=body, ContentType=kind_of(self.name), **more)

    def delete(self) -> None:
        """Deletes it, if it exists."""
        self._request("delete_object", "to delete")

    def upload(self, chunks: Iterable[Data], *, part_bytes: int) -> int:
        """Writes it completely or not at all: in one request if it fits into one part, else part by part.

        At most `THREADS` + 2 parts are in memory.

        Args:
            chunks: Its bytes.
            part_bytes: Length of a part; S3 requires at least 5 MiB.

        Returns:
            Its length in bytes.
        """
        parts = parts_of(chunks, part_bytes)
        first = next(parts)
        second = next(parts, None)
        if second is None:
            self.write(first)
            return len(first)
        begun = self._request("create_multipart_upload", "to write", ContentType=kind_of(self.name))["UploadId"]
        try:
            tags, nbytes = self._send(chain((first, second), parts), begun)
            sent = {"Parts": [{"PartNumber": number, "ETag": tag} for number, tag in enumerate(tags, start=1)]}
            try:
                self._request(
                    "complete_multipart_upload", "to write", expected=(404,), UploadId=begun, MultipartUpload=sent
                )
            except RefusedError as refused:  # an earlier try's answer was lost: the upload is complete, or gone
                if not refused.repeated or self.size() != nbytes:
                    raise self.connection.refusal(refused, f"to write {self.name}") from None
        except BaseException:
            with suppress(LwfedError):
                self._request("abort_multipart_upload", "to write", patience=Patience(bound_s=0), UploadId=begun)
            raise
        return nbytes

    def _send(self, parts: Iterable[bytearray], begun: str) -> tuple[list[str], int]:
        """Uploads parts, a few at a time. Returns their ETags and their total length."""
        patience = self.connection.patience()
        waiting: deque[Future[str]] = deque()
        tags: list[str] = []
        nbytes = 0

        def send(number: int, part: bytearray) -> str:
            answer = self._request(
                "upload_part", "to write", patience=patience, UploadId=begun, PartNumber=number, Body=part
            )
            return str(answer["ETag"])

        with ThreadPoolExecutor(THREADS) as pool:
            try:
                for number, part in enumerate(parts, start=1):
                    nbytes += len(part)
                    if len(waiting) == THREADS:
                        tags.append(waiting.popleft().result())
                    waiting.append(pool.submit(send, number, part))
                tags += [future.result() for future in waiting]
            except BaseException:
                patience.over.set()
                pool.shutdown(cancel_futures=True)
                for future in waiting:  # a full disk is the cause; other parts' errors follow from it
                    if not future.cancelled() and isinstance(future.exception(), DiskFullError):
                        future.result()
                raise
        return tags, nbytes

    def save(self, path: Path, *, size: int, threads: int | None = None, patience: Patience | None = None) -> None:
        """Downloads it to a file, which is there completely or not at all.

        Args:
            path: The file.
            size: Its length.
            threads: Number of ranges at a time; None: a few.
            patience: How long to retry; None: the connection's own.

        Raises:
            CheckpointError: It is missing, or has another length or ETag.
            OSError: The file cannot be written.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}")
        shared = patience or self.connection.patience()
        try:
            with temporary.open("xb") as file:

                def copy(start: int) -> None:
                    piece = bytearray(min(RANGE_BYTES, size - start))
                    for _ in self.arriving([memoryview(piece)], start=start, total=size, patience=shared):
                        pass
                    os.pwrite(file.fileno(), piece, start)

                parallel_map(copy, range(0, size, RANGE_BYTES), threads=threads)
            temporary.replace(path)
        finally:
            if patience is None:
                shared.over.set()
            temporary.unlink(missing_ok=True)

    def download(self, buffers: Sequence[memoryview], *, start: int = 0, total: int | None = None) -> None:
        """Fills buffers from it; see `arriving`."""
        for _ in self.arriving(buffers, start=start, total=total):
            pass

    def arriving(
        self,
        buffers: Sequence[memoryview],
        *,
        start: int = 0,
        total: int | None = None,
        patience: Patience | None = None,
    ) -> Generator[int, None, None]:
        """Fills buffers from it, several ranges at a time. Yields how many bytes from their start are there so far.

        Args:
            buffers: The buffers to fill, in order.
            start: The first byte to read.
            total: The length that it must have; None: any sufficient length.
            patience: How long to retry; None: the connection's own.

        Raises:
            CheckpointError: It is missing, or has another length or ETag.
        """
        ranges = list(ranges_of(buffers, RANGE_BYTES, start=start))
        shared = patience or self.connection.patience()

        def fill(item: tuple[int, list[memoryview]]) -> int:
            self._fill(*item, total=total, patience=shared)
            return item[0] + sum(map(len, item[1])) - start

        if len(ranges) == 1:
            yield fill(ranges[0])
            return
        with ThreadPoolExecutor(THREADS) as pool:
            try:
                yield from pool.map(fill, ranges)  # others arrive while the caller works on what is there
            finally:
                if patience is None:
                    shared.over.set()
                pool.shutdown(cancel_futures=True)

    def _fill(self, start: int, pieces: Sequence[memoryview], *, total: int | None, patience: Patience) -> None:
        """Fills pieces of memory with one range; after an answer that breaks off, requests the rest."""
        stop = start + sum(map(len, pieces))
        left = deque(pieces)
        done = 0

        def read(client: Any) -> None:
            nonlocal done
            headers = {} if (start + done, stop) == (0, total) else {"Range": f"bytes={start + done}-{stop - 1}"}
            answer = client.get_object(Bucket=self.connection.bucket, Key=self.key, **headers)
            length, body = _length_of(answer), answer["Body"]
            try:
                if self.etag is not None and answer["ETag"].strip('"') != self.etag.strip('"'):  # some servers quote it
                    raise changed_object(self.name)
                if total is not None and length != total:
                    raise wrong_length(self.name, found=length, expected=total)
                if length < stop:
                    raise truncated_object(self.name, byte=stop)
                if headers and "ContentRange" not in answer:
                    raise BrokenOffError("the server ignores byte ranges")
                while left:
                    count = body.readinto(left[0][:READ_BYTES])
                    if not count:
                        raise BrokenOffError(f"{self.name} broke off after {start + done} bytes")
                    done += count
                    patience.answered()
                    left[0] = left[0][count:]
                    if not len(left[0]):
                        left.popleft()
                body.read()  # at the end of the body: returns the connection to the pool
            except BaseException:
                body.close()
                raise

        try:
            self.connection.request(read, about=f"to read {self.name}", expected=(404, 416), patience=patience)
        except RefusedError as refused:
            if refused.status == 404:
                raise missing_object(self.name, store=self.connection.uri) from None
            if total is None:
                raise truncated_object(self.name, byte=stop) from None
            raise wrong_length(self.name, found=self.size() or 0, expected=total) from None

    def _request(
        self,
        operation: str,
        about: str,
        *,
        expected: Collection[int] = (),
        patience: Patience | None = None,
        **more: Any,
    ) -> Any:
        """Requests an operation of S3 on this object; see `Connection.request`."""
        return self.connection.request(
            lambda client: getattr(client, operation)(Bucket=self.connection.bucket, Key=self.key, **more),
            about=f"{about} {self.name}",
            expected=expected,
            patience=patience,
        )


def _length_of(answer: dict[str, Any]) -> int:
    """Returns the length of the whole object that an answer belongs to."""
    length = str(answer.get("ContentRange", "")).rpartition("/")[2] or str(answer.get("ContentLength", ""))
    if not length.isdigit():
        raise ForeignError(int(answer["ResponseMetadata"]["HTTPStatusCode"]), "an answer without its length")
    return int(length)
