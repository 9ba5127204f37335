"""The store in a folder: each write is a temporary file that is renamed, so that a kill leaves nothing half-written."""

from __future__ import annotations

import hashlib
import os
import shutil
import time
import uuid
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from lwfed import environment
from lwfed.store.keys import checked, missing_object, parsed_ref, truncated_object, wrong_length
from lwfed.store.pieces import ranges_of
from lwfed.store.protocol import Data, Seen, Store
from lwfed.types.canonical import by_line
from lwfed.types.errors import UnreachableError
from lwfed.types.places import place_error

R = TypeVar("R")

SCRATCH = ".writing"
PART_BYTES = 4 << 20
SCRATCH_AGE_S = 86_400


class LocalStore(Store):
    """A store in a folder of this machine."""

    verifies_writes = False

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root).expanduser().absolute()
        self.uri = str(self.root)
        self._swept = self._known = False

    def put(self, key: str, chunks: Iterable[Data]) -> int:
        """Writes an object; see `Store.put`."""
        with self._writing(key) as path, self._temporary() as (file, temporary):
            count = _write_all(file, chunks)
            _in_folder(path, temporary.replace)
        return count

    def put_named(self, folder: str, chunks: Iterable[Data], *, name: Callable[[], str | None]) -> int:
        """Writes an object whose name is known last; see `Store.put_named`."""
        with self._writing(f"{folder}/") as parent, self._temporary() as (file, temporary):
            count = _write_all(file, chunks)
            named = name()
            if named is None:
                temporary.unlink()
                return 0
            _in_folder(parent / checked(named), temporary.replace)
        return count

    def get(self, key: str, *, start: int = 0, stop: int | None = None) -> bytearray:
        """Reads an object or a part of it; see `Store.get`."""
        path = self.fetch(key)
        data = bytearray((path.stat().st_size if stop is None else stop) - start)
        with path.open("rb") as file:
            file.seek(start)
            if file.readinto(data) != len(data):
                raise truncated_object(key, byte=start + len(data))
        return data

    def read_parts(
        self, key: str, buffers: Sequence[memoryview | bytearray], *, start: int = 0, total: int | None = None
    ) -> Generator[int, None, None]:
        """Reads an object into buffers, part by part; see `Store.read_parts`."""
        with self.fetch(key).open("rb") as file:
            found = os.fstat(file.fileno()).st_size
            if total is not None and found != total:
                raise wrong_length(key, found=found, expected=total)
            file.seek(start)
            for first, pieces in ranges_of(buffers, PART_BYTES, start=start):
                stop = first + sum(map(len, pieces))
                for piece in pieces:
                    if file.readinto(piece) < len(piece):  # truncated while it is read
                        if total is None:
                            raise truncated_object(key, byte=stop)
                        raise wrong_length(key, found=file.tell(), expected=total)
                yield stop - start

    def fetch(self, key: str, *, to: Path | None = None) -> Path:
        """Returns the object's own file, or a link to it or copy of it at `to`."""
        path = self._path(key)
        if not path.is_file():
            self._refuse_gone()
            raise missing_object(key, store=self.uri)
        if to is None:
            return path
        try:
            os.link(path, to)
        except OSError:  # another file system
            shutil.copyfile(path, to)
        return to

    def size(self, key: str) -> int | None:
        """Returns an object's length."""
        path = self._path(key)
        if path.is_file():
            return path.stat().st_size
        self._refuse_gone()
        return None

    def list(self, prefix: str) -> Iterator[str]:
        """Yields the keys that start with a prefix, sorted."""
        folder = self._path(prefix) if prefix.endswith("/") or not prefix else self._path(prefix).parent
        self._refuse_gone()
        found = []
        for parent, folders, names in os.walk(folder):
            folders[:] = [name for name in folders if name != SCRATCH]
            base = Path(parent).relative_to(self.root).as_posix()
            found += [f"{base}/{name}" if base != "." else name for name in names]
        yield from sorted(key for key in found if key.startswith(prefix))

    def folders(self, prefix: str) -> Iterator[str]:
        """Yields the names of the folders directly below a prefix; see `Store.folders`."""
        with suppress(FileNotFoundError, NotADirectoryError), os.scandir(self._path(prefix)) as found:
            yield from sorted(entry.name for entry in found if entry.is_dir() and entry.name != SCRATCH)

    def delete(self, *keys: str) -> None:
        """Deletes objects, refs or logs, if they exist."""
        for key in keys:
            self._path(key).unlink(missing_ok=True)

    def read_ref(self, key: str) -> Any | None:
        """Reads a ref; None if it does not exist."""
        content = self._content(key)
        return None if content is None else parsed_ref(key, content)

    def read_ref_if_changed(self, key: str, mark: str | None) -> Seen | None:
        """Reads a ref unless it is as its mark says; see `Store.read_ref_if_changed`.

        The mark is a digest of the content: a file's number, time and length may be those of a version before, since
        the number of a file that was replaced is used again at once and the clock of the times is coarse.
        """
        content = self._content(key)
        if content is None:
            return Seen(None, None)
        found = hashlib.sha256(content).hexdigest()
        return None if found == mark else Seen(parsed_ref(key, content), found)

    def write_ref(self, key: str, value: Any, *, if_absent: bool = False) -> bool:
        """Writes a ref atomically; see `Store.write_ref`."""
        with self._writing(key) as path, self._temporary() as (file, temporary):
            file.write(by_line(value))
            file.flush()
            os.fsync(file.fileno())
            if not if_absent:
                _in_folder(path, temporary.replace)
                return True
            try:
                _in_folder(path, partial(os.link, temporary))
            except FileExistsError:
                return False
            finally:
                temporary.unlink()
            return True

    def append(self, key: str, data: Data) -> None:
        """Appends bytes to a log."""
        with self._writing(key) as path, _in_folder(path, lambda place: place.open("ab")) as file:
            file.write(data)

    def read_log(self, key: str) -> bytes:
        """Reads a log."""
        path = self._path(key)
        return path.read_bytes() if path.is_file() else b""

    def _content(self, key: str) -> bytes | None:
        """Returns the bytes of a small object; None if it does not exist."""
        path = self._path(key)
        try:
            return path.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            self._refuse_gone()
            return None
        except OSError as error:
            raise UnreachableError(
                f"cannot read {path}: {error.strerror}", remedy="see to the folder, its disk or its server"
            ) from error

    def _refuse_gone(self) -> None:
        """Raises UnreachableError if the store's folder was there and is not, as while its disk is not mounted."""
        there = False
        with suppress(OSError):  # a name that no folder can have, or a server that does not answer
            there = self.root.is_dir()
        if self._known and not there:
            raise UnreachableError(f"the store's folder {self.root} is gone", remedy="mount or restore it")
        self._known = there

    def _path(self, key: str) -> Path:
        return self.root / checked(key)

    @contextmanager
    def _writing(self, key: str) -> Iterator[Path]:
        path = self._path(key)
        self._refuse_gone()
        try:
            yield path
        except OSError as error:
            known = place_error(
                error,
                where=f"{self.root} for {key}",
                full=f"free some space; then {environment.resume_hint()}",
                closed="name a writable folder with -o store.uri=FOLDER",
            )
            if known is None:
                raise
            raise known from error

    @contextmanager
    def _temporary(self) -> Iterator[tuple[BinaryIO, Path]]:
        """Opens a file in the store's scratch folder, from which the body takes it; an error deletes it.

        Deletes files older than a day that killed writers left.
        """
        folder = self.root / SCRATCH
        if not self._swept:
            folder.mkdir(parents=True, exist_ok=True)
            self._swept = True
            for left in folder.iterdir():
                with suppress(FileNotFoundError):
                    if time.time() - left.stat().st_mtime > SCRATCH_AGE_S:
                        left.unlink()
        temporary = folder / uuid.uuid4().hex
        try:
            with _in_folder(temporary, lambda place: place.open("xb")) as file:
                yield file, temporary  # closing the file writes the buffer, and fails on a full disk
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def _in_folder(path: Path, act: Callable[[Path], R]) -> R:
    """Does what needs a file's folder, and makes the folder only if it is missing: most are there."""
    try:
        return act(path)
    except FileNotFoundError:
        path.parent.mkdir(parents=True, exist_ok=True)
        return act(path)


def _write_all(file: BinaryIO, chunks: Iterable[Data]) -> int:
    """Writes chunks and closes the file; returns their length in bytes."""
    count = 0
    for chunk in chunks:
        count += memoryview(chunk).nbytes
        file.write(chunk)
    file.close()
    return count
