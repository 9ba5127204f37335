"""A folder of data in a bucket: what it has is listed once, and files are fetched when they are needed, and kept.

A fetched file is kept by its bucket, key and ETag, so that a machine fetches each object once, and an object that was
replaced is another file. What is read is what was listed when the folder was opened.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from lwfed import environment
from lwfed.types.errors import DataError
from lwfed.types.places import place_error

if TYPE_CHECKING:
    from lwfed.store.s3.folder import Listed, S3Folder

Progress = Callable[[int, int], None]
"""Called with (number of files done, number of files to do)."""
FOLDER = "objects"
"""Name of the folder below the cache folder."""
_ENDING = 16  # characters of a file's ending, at most


@dataclass(frozen=True)
class RemoteFolder:
    """A folder in a bucket; see `lwfed.data.folders.Folder`.

    Attributes:
        source: The folder.
        listed: Path below it -> its object.
        place: The folder on this machine that its objects are kept in.
        progress: Called with (number of objects fetched, number of objects to fetch); None: nobody asks.
    """

    source: S3Folder
    listed: Mapping[str, Listed] = field(repr=False)
    place: Path
    progress: Progress | None = None

    def title(self, path: str = "") -> str:
        """Returns the URI of a path, or of the folder."""
        return f"{self.source.uri}/{path}".rstrip("/")

    def names(self) -> Iterable[str]:
        """Returns the paths of all files."""
        return self.listed.keys()

    def has(self, path: str) -> bool:
        """Whether there is a file."""
        return path in self.listed

    def beside(self, path: str) -> list[str]:
        """Returns the names of files and folders in the folder of a path, sorted."""
        parent = str(PurePosixPath(path).parent)
        above = "" if parent == "." else f"{parent}/"
        found = {name[len(above) :].partition("/")[0] for name in self.listed if name.startswith(above)}
        return sorted(found - {""})

    def file(self, path: str) -> Path:
        """Returns where a file lies on this machine, and fetches it if it does not. Raises as `hold` does."""
        names = self.hold([path])
        if not names:
            raise DataError(f"there is no {self.title(path)}", remedy="restore it, or remove what names it")
        return self.place / names[path]

    def hold(self, paths: Iterable[str]) -> dict[str, str]:
        """Fetches the files that this machine does not have yet.

        Returns:
            Path -> its file, below `place`; without paths that the folder does not have.

        Raises:
            DataError: An object was replaced or removed since the folder was opened.
            UnreachableError: The server does not answer or refuses, or the cache folder cannot be written.
            DiskFullError: There is no space left.
        """
        names = {path: self._name(path) for path in paths if path in self.listed}
        absent = [path for path, name in names.items() if not self._is_kept(path, name)]
        if absent:
            try:
                self.source.save(
                    [(path, self.listed[path], self.place / names[path]) for path in absent], progress=self.progress
                )
            except OSError as error:
                known = place_error(
                    error, where=f"{self.place} for files of {self.title()}",
                    full="free some space, or set LWFED_CACHE, or a pool's `cache`, to a folder on a larger disk",
                    closed="set LWFED_CACHE, or a pool's `cache`, to a folder that can be written",
                )  # fmt: skip
                if known is None:
                    raise
                raise known from error
        return names

    def _name(self, path: str) -> str:
        version = f"{self.source.key(path)}\n{self.listed[path].etag}"
        digest, ending = hashlib.sha256(version.encode()).hexdigest()[:40], PurePosixPath(path).suffix
        return f"{digest[:2]}/{digest[2:]}{ending if len(ending) <= _ENDING else ''}"

    def _is_kept(self, path: str, name: str) -> bool:
        try:
            return os.stat(f"{self.place}/{name}").st_size == self.listed[path].size  # noqa: PTH116  # as in `digests`
        except OSError:
            return False


def open_remote(uri: str, *, cache: Path | None = None, progress: Progress | None = None) -> RemoteFolder:
    """Opens a folder in a bucket.

    Args:
        uri: `s3://bucket/prefix`.
        cache: The folder below which its objects are kept; None: the machine's cache folder.
        progress: Called after each object that is fetched.

    Raises:
        DataError: It has no object.
        UnreachableError: The server does not answer, or refuses.
    """
    from lwfed.store.s3.folder import S3Folder  # loads botocore

    source = S3Folder(uri, key="data.root")
    listed = source.listing()
    if not listed:
        raise DataError(f"there is nothing in {source.uri}", remedy="set data.root to the folder of the table")
    bucket = hashlib.sha256(source.bucket.encode()).hexdigest()[:16]
    return RemoteFolder(source, listed, (cache or environment.cache_folder()) / FOLDER / bucket, progress)
