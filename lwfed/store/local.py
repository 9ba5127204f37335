"""The store as a folder: a write is a temporary file that is renamed, so a kill leaves nothing half-written."""

from __future__ import annotations

import errno
import json
import os
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from lwfed.store.protocol import Data
from lwfed.types.canonical import readable
from lwfed.types.errors import CheckpointError, DiskFullError, SpecError, UnreachableError

SCRATCH = ".writing"
SCRATCH_AGE_S = 86_400


class LocalStore:
    """A store in a folder of this machine."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root).expanduser().absolute()
        self.uri = str(self.root)
        self._swept = False

    def put(self, key: str, chunks: Iterable[Data]) -> int:
        """Writes an object; see `Store.put`."""
        with self._writing(key) as path, self._temporary() as (file, temporary):
            count = 0
            for chunk in chunks:
                count += len(memoryview(chunk).cast("B"))
                file.write(chunk)
            file.close()
            temporary.replace(path)
        return count

    def get(self, key: str, *, start: int = 0, stop: int | None = None) -> bytearray:
        """Reads an object or a part of it; see `Store.get`."""
        path = self.fetch(key)
        data = bytearray((path.stat().st_size if stop is None else stop) - start)
        with path.open("rb") as file:
            file.seek(start)
            if file.readinto(data) != len(data):
                raise CheckpointError(f"{key} ends before byte {start + len(data)}", remedy=_damaged(key))
        return data

    def fetch(self, key: str) -> Path:
        """Gives the object's own file."""
        path = self._path(key)
        if not path.is_file():
            raise CheckpointError(f"{key} is not in the store {self.root}", remedy=_damaged(key))
        return path

    def has(self, key: str) -> bool:
        """Whether there is such an object or ref."""
        return self._path(key).is_file()

    def list(self, prefix: str) -> Iterator[str]:
        """Yields the keys that start with a prefix, sorted."""
        folder = self._path(prefix) if prefix.endswith("/") or not prefix else self._path(prefix).parent
        found = []
        for parent, folders, names in os.walk(folder):
            folders[:] = [name for name in folders if name != SCRATCH]
            base = Path(parent).relative_to(self.root).as_posix()
            found += [f"{base}/{name}" if base != "." else name for name in names]
        yield from sorted(key for key in found if key.startswith(prefix))

    def delete(self, key: str) -> None:
        """Removes an object or ref, if it is there."""
        self._path(key).unlink(missing_ok=True)

    def read_ref(self, key: str) -> Any | None:
        """Reads a ref; None where there is none."""
        try:
            return json.loads(self._path(key).read_bytes())
        except (FileNotFoundError, NotADirectoryError):
            return None
        except ValueError as error:  # no JSON, or no text at all
            raise CheckpointError(f"{key} is not JSON ({error})", remedy=_damaged(key)) from None

    def write_ref(self, key: str, value: Any, *, if_absent: bool = False) -> bool:
        """Writes a ref at once; see `Store.write_ref`."""
        with self._writing(key) as path, self._temporary() as (file, temporary):
            file.write(readable(value))
            file.flush()
            os.fsync(file.fileno())
            if not if_absent:
                temporary.replace(path)
                return True
            try:
                os.link(temporary, path)
            except FileExistsError:
                return False
            return True

    def append(self, key: str, data: Data) -> None:
        """Adds bytes to the end of a log."""
        with self._writing(key) as path, path.open("ab") as file:
            file.write(data)

    def _path(self, key: str) -> Path:
        if ".." in key.split("/") or key.startswith("/"):
            raise CheckpointError(f"`{key}` is not a key", remedy="keys are relative and hold no `..`")
        return self.root / key

    @contextmanager
    def _writing(self, key: str) -> Iterator[Path]:
        path = self._path(key)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            yield path
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise DiskFullError(
                    f"no space is left in {self.root} for {key}",
                    remedy="free some space and start the run again with the same --run-id: nothing committed is lost",
                ) from error
            if error.errno in (errno.EACCES, errno.EROFS, errno.ENOTDIR, errno.EPERM, errno.EEXIST):
                raise UnreachableError(
                    f"cannot write {key} in {self.root}: {error.strerror}",
                    remedy="name a folder that can be written with -o store.uri=FOLDER",
                ) from error
            raise

    @contextmanager
    def _temporary(self) -> Iterator[tuple[BinaryIO, Path]]:
        """Opens a file in the store's scratch folder; what a kill left there is removed after a day."""
        folder = self.root / SCRATCH
        folder.mkdir(parents=True, exist_ok=True)
        if not self._swept:
            self._swept = True
            for left in folder.iterdir():
                with suppress(FileNotFoundError):
                    if time.time() - left.stat().st_mtime > SCRATCH_AGE_S:
                        left.unlink()
        temporary = folder / uuid.uuid4().hex
        try:
            with temporary.open("xb") as file:  # closing it writes what is buffered, and fails on a full disk
                yield file, temporary
        finally:
            temporary.unlink(missing_ok=True)


def open_store(uri: str) -> LocalStore:
    """Opens the store that a spec names.

    Raises:
        SpecError: The URI has a scheme that is not known.
    """
    scheme, sign, rest = uri.partition("://")
    if sign and scheme != "file":
        raise SpecError(f"`store.uri` {uri}: there is no store for {scheme}://", remedy="name a folder")
    return LocalStore(rest if sign else uri)


def _damaged(key: str) -> str:
    stage = "/".join(key.split("/")[:2])
    where = f"remove {stage} from the store" if key.startswith("stages/") else "restore it from a backup"
    return f"{where}, or train anew with --fresh"
