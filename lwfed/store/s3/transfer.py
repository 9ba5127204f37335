"""Transfers large objects to and from S3: parts are sent while the next is read, ranges are read straight into memory.

boto3's transfer manager is not used: it reads only whole objects, restarts a range that breaks off, counts tries
instead of seconds, and copies everything through a queue. Here bytes are read into the tensors themselves, and all
parts of an object share one time limit.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from itertools import chain
from typing import Any

from lwfed.patience import Patience
from lwfed.store.keys import missing_object, truncated_object, wrong_length
from lwfed.store.protocol import Data
from lwfed.store.s3.client import BrokenOffError, Connection, RefusedError
from lwfed.types.errors import DiskFullError, LwfedError

PART_BYTES = 8 << 20
RANGE_BYTES = 8 << 20
READ_BYTES = 1 << 20
THREADS = 4

KINDS = {
    ".json": "application/json", ".jsonl": "application/x-ndjson", ".html": "text/html; charset=utf-8",
    ".svg": "image/svg+xml",
}  # fmt: skip
"""Suffix of a key -> media type, for browsers."""


def kind_of(key: str) -> str:
    """Returns the media type of an object."""
    return next((kind for suffix, kind in KINDS.items() if key.endswith(suffix)), "application/octet-stream")


def parts_of(chunks: Iterable[Data], size: int) -> Iterator[bytearray]:
    """Cuts a stream into parts of `size` bytes; the last may be shorter, and there is at least one."""
    part = bytearray()
    for chunk in chunks:
        view = memoryview(chunk).cast("B")
        while len(view) > size - len(part):
            taken = size - len(part)
            part += view[:taken]
            view = view[taken:]
            yield part
            part = bytearray()
        part += view
    yield part


def upload(connection: Connection, key: str, chunks: Iterable[Data], *, part_bytes: int, name: str) -> int:
    """Writes an object completely or not at all: in one request if it fits into one part, else part by part.

    At most `THREADS` + 2 parts are in memory.

    Args:
        connection: The object's bucket.
        key: Its key in the bucket.
        chunks: Its bytes.
        part_bytes: Length of a part; S3 requires at least 5 MiB.
        name: Its key in the store, for messages.

    Returns:
        Its length in bytes.
    """
    parts = parts_of(chunks, part_bytes)
    first = next(parts)
    second = next(parts, None)
    named: dict[str, Any] = {"Bucket": connection.bucket, "Key": key}
    about = f"to write {name}"
    if second is None:
        connection.request(lambda c: c.put_object(**named, Body=first, ContentType=kind_of(name)), about=about)
        return len(first)
    started = connection.request(lambda c: c.create_multipart_upload(**named, ContentType=kind_of(name)), about=about)
    named["UploadId"] = started["UploadId"]
    try:
        sent, nbytes = _send(connection, chain((first, second), parts), named=named, about=about)
        listed = {"Parts": [{"PartNumber": number, "ETag": etag} for number, etag in enumerate(sent, start=1)]}
        try:
            connection.request(
                lambda c: c.complete_multipart_upload(**named, MultipartUpload=listed), about=about, expected=(404,)
            )
        except RefusedError as refused:  # an earlier try's answer was lost: the upload is complete, or gone
            if not refused.repeated or size_of(connection, key, name=name) != nbytes:
                raise connection.refusal(refused, about) from None
    except BaseException:
        with suppress(LwfedError):
            connection.request(lambda c: c.abort_multipart_upload(**named), about=about, patience=Patience(bound_s=0))
        raise
    return nbytes


def _send(
    connection: Connection, parts: Iterable[bytearray], *, named: dict[str, Any], about: str
) -> tuple[list[str], int]:
    """Uploads parts, a few at a time. Returns their ETags and their total length."""
    patience = connection.patience()
    waiting: deque[Future[str]] = deque()
    tags: list[str] = []
    nbytes = 0

    def send(number: int, part: bytearray) -> str:
        answer = connection.request(
            lambda c: c.upload_part(**named, PartNumber=number, Body=part), about=about, patience=patience
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


def download(
    connection: Connection,
    key: str,
    buffers: Sequence[memoryview],
    *,
    name: str,
    start: int = 0,
    total: int | None = None,
) -> None:
    """Fills buffers from an object, several ranges at a time.

    Args:
        connection: The object's bucket.
        key: Its key in the bucket.
        buffers: The buffers to fill, in order.
        name: Its key in the store, for messages.
        start: The first byte to read.
        total: The length that the object must have; None: any sufficient length.

    Raises:
        CheckpointError: The object is missing, or has another length.
    """
    ranges = list(_ranges(buffers, start))
    patience = connection.patience()

    def fill(item: tuple[int, list[memoryview]]) -> None:
        _fill(connection, key, *item, name=name, total=total, patience=patience)

    if len(ranges) == 1:
        fill(ranges[0])
        return
    with ThreadPoolExecutor(THREADS) as pool:
        try:
            list(pool.map(fill, ranges))  # if one fails, those that have not started are cancelled
        finally:
            patience.over.set()


def size_of(connection: Connection, key: str, *, name: str) -> int | None:
    """Returns an object's length; None if it does not exist."""
    answer = head(connection, key, name=name)
    return None if answer is None else int(answer["ContentLength"])


def head(connection: Connection, key: str, *, name: str) -> dict[str, Any] | None:
    """Returns an object's metadata; None if it does not exist."""
    try:
        answer: dict[str, Any] = connection.request(
            lambda c: c.head_object(Bucket=connection.bucket, Key=key), about=f"to look for {name}", expected=(404,)
        )
    except RefusedError:
        return None
    return answer


def _ranges(buffers: Sequence[memoryview], start: int) -> Iterator[tuple[int, list[memoryview]]]:
    """Cuts buffers into ranges of the object: (first byte, pieces of memory)."""
    pieces: list[memoryview] = []
    length = 0
    for buffer in buffers:
        while len(buffer):
            piece = buffer[: RANGE_BYTES - length]
            pieces.append(piece)
            length += len(piece)
            buffer = buffer[len(piece) :]
            if length == RANGE_BYTES:
                yield start, pieces
                start, pieces, length = start + length, [], 0
    if pieces:
        yield start, pieces


def _fill(
    connection: Connection,
    key: str,
    start: int,
    pieces: Sequence[memoryview],
    *,
    name: str,
    total: int | None,
    patience: Patience,
) -> None:
    """Fills pieces of memory with one range; after an answer that breaks off, requests the rest."""
    stop = start + sum(map(len, pieces))
    left = deque(pieces)
    done = 0

    def read(client: Any) -> None:
        nonlocal done
        headers = {} if (start + done, stop) == (0, total) else {"Range": f"bytes={start + done}-{stop - 1}"}
        answer = client.get_object(Bucket=connection.bucket, Key=key, **headers)
        length, body = _length_of(answer), answer["Body"]
        try:
            if total is not None and length != total:
                raise wrong_length(name, found=length, expected=total)
            if length < stop:
                raise truncated_object(name, byte=stop)
            if headers and "ContentRange" not in answer:
                raise BrokenOffError("the server ignores byte ranges")
            while left:
                count = body.readinto(left[0][:READ_BYTES])
                if not count:
                    raise BrokenOffError(f"{name} broke off after {start + done} bytes")
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
        connection.request(read, about=f"to read {name}", expected=(404, 416), patience=patience)
    except RefusedError as refused:
        if refused.status == 404:
            raise missing_object(name, store=connection.uri) from None
        if total is None:
            raise truncated_object(name, byte=stop) from None
        raise wrong_length(name, found=size_of(connection, key, name=name) or 0, expected=total) from None


def _length_of(answer: dict[str, Any]) -> int:
    """Returns the length of the whole object that an answer belongs to."""
    length = str(answer.get("ContentRange", "")).rpartition("/")[2]
    return int(length) if length.isdigit() else int(answer["ContentLength"])
