"""A folder in a bucket that others write: what it has, and its objects as files on this machine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from lwfed.store.s3.client import CREDENTIALS, Connection
from lwfed.store.s3.transfer import S3Object
from lwfed.types.errors import CheckpointError, DataError
from lwfed.types.uris import S3, bucket_of

TOGETHER = 8
"""Objects that are fetched at a time; each has at most one range of 8 MiB in memory."""


class Listed(NamedTuple):
    """An object as a listing has it: its version, and its length in bytes."""

    etag: str
    size: int


class S3Folder:
    """A folder in a bucket.

    Args:
        uri: `s3://bucket/prefix`.
        key: The key of the spec that names it, for messages.

    Raises:
        SpecError: The URI names no bucket.
    """

    def __init__(self, uri: str, *, key: str) -> None:
        bucket, prefix = bucket_of(uri, key=key)
        self.uri = f"{S3}{bucket}/{prefix}".rstrip("/")
        self.connection = Connection(
            self.uri,
            bucket,
            remedy=f"{CREDENTIALS}; they need s3:ListBucket on the bucket and s3:GetObject on what is in the folder",
            bucket_remedy=f"check `{key}`, and AWS_ENDPOINT_URL_S3 if it is on another server",
        )
        self._prefix = f"{prefix}/" if prefix else ""

    @property
    def bucket(self) -> str:
        """Address of the bucket, which other servers may have under the same name."""
        return f"{self.connection.endpoint}/{self.connection.bucket}"

    def listing(self) -> dict[str, Listed]:
        """Returns path below the folder -> its object, for all of them.

        Raises:
            UnreachableError: The server does not answer, or refuses.
        """

        def listed(client: Any) -> dict[str, Listed]:
            pages = client.get_paginator("list_objects_v2").paginate(Bucket=self.connection.bucket, Prefix=self._prefix)
            return {
                item["Key"][len(self._prefix) :]: Listed(item["ETag"], int(item["Size"]))
                for page in pages
                for item in page.get("Contents", ())
                if not item["Key"].endswith("/")  # folders that a web console made
            }

        return self.connection.request(listed, about="to list the folder")

    def key(self, path: str) -> str:
        """Returns the key of a path below the folder."""
        return self._prefix + path

    def save(
        self, wanted: Sequence[tuple[str, Listed, Path]], *, progress: Callable[[int, int], None] | None = None
    ) -> None:
        """Downloads objects to files, several at a time.

        Args:
            wanted: Path below the folder, its object as listed, and the file to write.
            progress: Called after each object with (number fetched, number to fetch).

        Raises:
            DataError: An object was replaced or removed since it was listed.
            UnreachableError: The server does not answer, or refuses.
            OSError: A file cannot be written.
        """
        patience = self.connection.patience()

        def save(item: tuple[str, Listed, Path]) -> None:
            path, (etag, size), file = item
            source = S3Object(self.connection, self.key(path), path, etag)
            try:
                source.save(file, size=size, threads=None if len(wanted) == 1 else 1, patience=patience)
            except CheckpointError:
                raise DataError(
                    f"{self.uri}/{path} was replaced or removed while it was read",
                    remedy="wait until nothing writes to the data, and start again",
                ) from None

        with ThreadPoolExecutor(TOGETHER) as pool:
            try:
                for done, _ in enumerate(pool.map(save, wanted), start=1):  # after an error, none begins
                    if progress is not None:
                        progress(done, len(wanted))
            finally:
                patience.over.set()
