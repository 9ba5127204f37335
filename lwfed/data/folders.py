"""Folders of data, their splits, and a digest of their content."""

from __future__ import annotations

import hashlib
import os
import posixpath
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from lwfed.data.protocol import Example
from lwfed.spec.data import DataSpec
from lwfed.types.canonical import canonical
from lwfed.types.errors import DataError

_LONGEST = 255  # bytes of a name, on every file system


class Folder(Protocol):
    """A folder of data, on a disk or in a bucket (`lwfed.data.remote`); paths are below it."""

    def title(self, path: str = "") -> str:
        """Returns the name of a path for people, or of the folder."""

    def names(self) -> Iterable[str]:
        """Returns the paths of all files."""

    def has(self, path: str) -> bool:
        """Whether there is a file."""

    def beside(self, path: str) -> list[str]:
        """Returns the names of files and folders in the folder of a path, sorted."""

    def file(self, path: str) -> Path:
        """Returns where a file lies on this machine, or would lie."""


@dataclass(frozen=True)
class DiskFolder:
    """A folder on a disk; see `Folder`."""

    place: Path

    def title(self, path: str = "") -> str:
        """Returns a path on this machine."""
        return str(self.place / path)

    def names(self) -> Iterator[str]:
        """Yields the paths of all files."""
        return files_below(self.place)

    def has(self, path: str) -> bool:
        """Whether there is a file, whatever its name."""
        return os.path.isfile(self.place / path)  # noqa: PTH113  # answers for names that no file can have, too

    def beside(self, path: str) -> list[str]:
        """Returns the names of files and folders in the folder of a path, sorted."""
        return _entries((self.place / path).parent)

    def file(self, path: str) -> Path:
        """Returns a path on this machine."""
        return self.place / path


def files_below(folder: Path) -> Iterator[str]:
    """Yields the paths of all files below a folder."""
    for parent, _, names in os.walk(folder):
        base = Path(parent).relative_to(folder)
        yield from ((base / name).as_posix() for name in names)


def _entries(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


def data_root(data: DataSpec) -> Path:
    """Returns the root folder of data on disk. Raises DataError if it does not exist or its name is not UTF-8."""
    root = Path(os.path.expanduser(data.root or ""))  # noqa: PTH111 - an unknown home leaves the name as it is
    require_unicode(root)
    if not data.root or not root.is_dir():
        raise DataError(
            f"there is no folder {data.root} for the {data.source} data",
            remedy="set data.root to the data's folder, or try `data.source: shapes`, which is built in",
        )
    return root


def require_unicode(path: Path) -> None:
    """Raises DataError if a path cannot be stored as text, because its name is not UTF-8."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise DataError(
            f"the name {os.fsencode(path)!r} is not UTF-8",
            remedy="rename it, for example by `convmv -r --notest -f latin1 -t utf8 <folder>`",
        ) from None


def require_folder(folder: Path, *, remedy: str) -> Path:
    """Returns the given folder. Raises DataError if it does not exist."""
    if not folder.is_dir():
        raise DataError(f"there is no folder {folder}", remedy=remedy)
    return folder


def inside(name: str) -> str | None:
    """Returns a path below a folder in its shortest form; None if it lies outside or no file system can have it."""
    short = posixpath.normpath(name)
    outside = short in (".", "..") or short.startswith(("/", "../"))
    if outside or "\0" in name or any(len(part.encode()) > _LONGEST for part in short.split("/")):
        return None
    return short


def alike(folder: Path, name: str) -> str:
    """Returns the entry of a folder that people could take for a missing one, in words; see `alike_among`."""
    return alike_among(_entries(folder), name)


def alike_among(entries: Iterable[str], name: str) -> str:
    """Returns the first entry that people could take for a missing one, in words; "" if there is none.

    Args:
        entries: The names that there are.
        name: The missing name, with or without its ending. Names that differ in their endings, in upper and lower case,
            or in the code points of the same letters are alike.
    """
    for entry in entries:
        stem = Path(entry).stem
        for wanted, given in ((name, entry), (name, stem), (Path(name).stem, stem)):
            composed, found = (unicodedata.normalize("NFC", text) for text in (wanted, given))
            if composed.casefold() != found.casefold():
                continue
            if composed != found:
                return f"; {entry} there differs in upper and lower case"
            if wanted != given:
                return f"; {entry} there differs in Unicode normalisation: its letters have other code points"
            return f"; {entry} is there"
    return ""


def of_split(
    split: str,
    *,
    train: tuple[Example, ...],
    test: tuple[Example, ...],
    validation: tuple[Example, ...] = (),
) -> tuple[Example, ...]:
    """Returns the examples of a split by its name."""
    splits = {"train": train, "validation": validation, "test": test}
    if split not in splits:
        raise ValueError(f"there is no split {split!r} -> use one of: {', '.join(splits)}")
    return splits[split]


def listing_digest(kind: str, *, entries: Iterable[tuple[str, str]]) -> str:
    """Returns the digest of a sorted listing of names, without reading large files.

    Args:
        kind: Name of the source.
        entries: (path relative to the root, digest of a small file or nothing) of each file.

    Returns:
        64 hex digits.
    """
    state = hashlib.sha256(kind.encode())
    for entry in sorted(entries, key=lambda item: item[0]):
        state.update(canonical(list(entry)) + b"\n")
    return state.hexdigest()
