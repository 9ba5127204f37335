"""Digests of files' contents. Each is computed once and kept with the file's size, times and inode, never beside the data.

A file whose size, times and inode are as before is taken to be unchanged; any other is read again.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from lwfed.types.errors import DataError

MISSING = "missing"
"""The digest of a file that does not exist."""
THREADS = 4
"""Files hashed at a time; hashing releases the interpreter, and a disk serves several readers faster than one."""

Stamp = tuple[int, int, int, int]
"""A file's size, modification and change time in ns, and inode."""
Progress = Callable[[int, int], None]
"""Called with (files hashed, files to hash)."""


class FileDigests:
    """Digests of files, kept in memory and in a folder.

    Args:
        folder: The folder to keep them in, one file per root; if it cannot be written, they are kept in memory only.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._known: dict[Path, dict[str, tuple[Stamp, str]]] = {}

    def of(self, root: Path, names: Mapping[str, str], *, progress: Progress | None = None) -> dict[str, str]:
        """Returns the digests of files.

        Args:
            root: A folder.
            names: Name -> path below the root.
            progress: Called as files are hashed; not called if all digests are known.

        Returns:
            Name -> sha256 of the content as 64 hex digits, or `missing`.

        Raises:
            DataError: A file cannot be read, or changes while it is read.
        """
        root = root.absolute()
        known = self._known.setdefault(root, self._load(root))
        stamps = {path: _stamp(root / path) for path in names.values()}
        unknown = [path for path, now in stamps.items() if now is not None and known.get(path, (None,))[0] != now]
        with ThreadPoolExecutor(max_workers=THREADS) as pool:
            hashed = pool.map(lambda path: _hash(root / path), unknown)
            for count, (path, found) in enumerate(zip(unknown, hashed, strict=True), start=1):
                known[path] = found
                if progress is not None:
                    progress(count, len(unknown))
        if unknown:
            self._save(root, known)
        return {name: MISSING if stamps[path] is None else known[path][1] for name, path in names.items()}

    def _file(self, root: Path) -> Path:
        return self._folder / f"digests-{hashlib.sha256(str(root).encode(errors='surrogateescape')).hexdigest()[:16]}.json"

    def _load(self, root: Path) -> dict[str, tuple[Stamp, str]]:
        with suppress(OSError, ValueError, TypeError, KeyError):
            values = json.loads(self._file(root).read_bytes())
            return {path: ((size, mtime, ctime, inode), digest) for path, (size, mtime, ctime, inode, digest) in values.items()}
        return {}

    def _save(self, root: Path, known: Mapping[str, tuple[Stamp, str]]) -> None:
        path = self._file(root)
        beside = path.with_name(f"{path.name}.{os.getpid()}")
        with suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            beside.write_text(json.dumps({name: [*stamp, digest] for name, (stamp, digest) in known.items()}))
            beside.replace(path)


def _stamp(path: Path) -> Stamp | None:
    try:
        found = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}", remedy="check its permissions") from None
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino


def _hash(path: Path) -> tuple[Stamp, str]:
    before = _stamp(path)
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}", remedy="check its permissions") from None
    if before is None or _stamp(path) != before:
        raise DataError(f"{path} changes while it is read", remedy="wait until nothing writes to the data any more")
    return before, digest
