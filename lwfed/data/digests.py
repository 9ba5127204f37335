"""Digests of files' contents: each is computed once and kept with the file's size, times and inode.

A file whose size, times and inode are as before is taken to be unchanged; any other is read again. Nothing is written
beside the data.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from lwfed.data.protocol import Example, Source
from lwfed.data.remote import Progress
from lwfed.types.canonical import digest_of
from lwfed.types.errors import DataError

MISSING = "missing"
"""The digest of a file that does not exist, or is a folder or a pipe."""
THREADS = 4
"""Files hashed at a time: hashing releases the interpreter lock, and disks serve several readers faster than one."""

Stamp = tuple[int, int, int, int]
"""A file's size in bytes, time of its last modification and change in ns, and inode."""


class FileDigests:
    """Digests of files, kept in memory and in a folder.

    Args:
        folder: The folder to keep them in, one file per root. Without one, or if it cannot be written, memory alone has
            them.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder
        self._known: dict[Path, dict[str, tuple[Stamp, str]]] = {}

    def of(self, root: Path, paths: Iterable[str], *, progress: Progress | None = None) -> dict[str, str]:
        """Returns files' digests.

        Args:
            root: A folder.
            paths: Paths below it.
            progress: Called after each file that is hashed; never if all digests are known.

        Returns:
            Path -> sha256 of the content as 64 hex digits, or `missing`.

        Raises:
            DataError: A file cannot be read, or changes meanwhile.
        """
        root = root.absolute()
        known = self._known.setdefault(root, self._load(root))
        folder = str(root)
        stamps = {path: _stamp(f"{folder}/{path}") for path in paths}
        unknown = [path for path, now in stamps.items() if now and (path not in known or known[path][0] != now)]
        with ThreadPoolExecutor(max_workers=THREADS) as pool:
            hashed = pool.map(lambda path: _hash(f"{folder}/{path}"), unknown)
            for count, (path, found) in enumerate(zip(unknown, hashed, strict=True), start=1):
                known[path] = found
                if progress is not None:
                    progress(count, len(unknown))
        if unknown:
            self._save(root, known)
        return {path: known[path][1] if now else MISSING for path, now in stamps.items()}

    def _file(self, root: Path) -> Path | None:
        name = hashlib.sha256(os.fsencode(root)).hexdigest()[:16]
        return None if self._folder is None else self._folder / "digests" / f"{name}.json"

    def _load(self, root: Path) -> dict[str, tuple[Stamp, str]]:
        path = self._file(root)
        if path is None:
            return {}
        with suppress(OSError, ValueError, TypeError, AttributeError, RecursionError):
            values = json.loads(path.read_bytes())
            return {
                name: ((size, mtime, ctime, inode), digest)
                for name, (size, mtime, ctime, inode, digest) in values.items()
            }
        return {}

    def _save(self, root: Path, known: Mapping[str, tuple[Stamp, str]]) -> None:
        path = self._file(root)
        if path is None:
            return
        beside = path.with_name(f"{path.name}.{os.getpid()}")
        with suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            merged = {**self._load(root), **known}  # other processes hash other clients' files
            beside.write_text(json.dumps({name: [*stamp, digest] for name, (stamp, digest) in merged.items()}))
            beside.replace(path)


def list_files(source: Source, digests: FileDigests, *, progress: Progress | None = None) -> dict[str, str]:
    """Returns the digests of all files of a source, by their path below its root; empty for generated data.

    Raises:
        DataError: A file cannot be read.
        UnreachableError, DiskFullError: It lies in a bucket and cannot be fetched.
    """
    paths = dict.fromkeys(path for paths in source.files.values() for path in paths)  # examples may share a file
    return _contents(source, paths, digests, progress=progress)


def _contents(
    source: Source, paths: Iterable[str], digests: FileDigests, *, progress: Progress | None = None
) -> dict[str, str]:
    """Returns the digests of files of a source; those in a bucket are fetched first."""
    root = source.root
    if root is None:
        return {}
    if isinstance(root, Path):
        return digests.of(root, paths, progress=progress)
    wanted = list(paths)
    names = root.hold(wanted)
    found = digests.of(root.place, names.values(), progress=progress)
    return {path: found[names[path]] if path in names else MISSING for path in wanted}


def version_of(source: Source, listing: Mapping[str, str]) -> str:
    """Returns the version of a source's data: a digest of everything that decides them, wherever they lie.

    Args:
        source: The data.
        listing: As returned by `list_files`.
    """
    own = source.version()
    return own if source.root is None else digest_of({"source": own, "files": dict(listing)})


def changed_files(
    source: Source, examples: Sequence[Example], *, listing: Mapping[str, str], digests: FileDigests
) -> dict[str, str]:
    """Returns the examples with a file whose content is not the listed one: example id -> path of the file.

    Args:
        source: The data.
        examples: The examples to look at.
        listing: The listed digests.
        digests: Digests of the files as they are.

    Raises:
        DataError: A file cannot be read.
        UnreachableError, DiskFullError: It lies in a bucket and cannot be fetched.
    """
    if source.root is None:
        return {}
    files = source.files
    paths = [(example.id, path) for example in examples for path in files[example.id]]
    now = _contents(source, dict.fromkeys(path for _, path in paths), digests)
    return {name: path for name, path in paths if listing.get(path) != now[path]}


def _stamp(path: str) -> Stamp | None:
    try:
        found = os.stat(path)  # noqa: PTH116  # a Path per file takes several times as long
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise _unreadable(path, error) from None
    if not stat.S_ISREG(found.st_mode):
        return None
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino


def _hash(path: str) -> tuple[Stamp, str]:
    before = _stamp(path)
    try:
        with Path(path).open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise _unreadable(path, error) from None
    if before is None or _stamp(path) != before:
        raise DataError(f"{path} changes while it is read", remedy="wait until nothing writes to the data")
    return before, digest


def _unreadable(path: str, error: OSError) -> DataError:
    return DataError(f"{path} cannot be read: {error.strerror or error}", remedy="make it readable")
