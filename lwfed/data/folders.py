"""Data on disk: their folders, their splits, and a digest of their content."""

from __future__ import annotations

import hashlib
import os
import posixpath
import unicodedata
from collections.abc import Iterable
from pathlib import Path

from lwfed.data.protocol import Example
from lwfed.spec.data import DataSpec
from lwfed.types.canonical import canonical
from lwfed.types.errors import DataError

_LONGEST = 255  # bytes of a name, on every file system


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
    """Returns the entries of a folder that people could take for a missing one, in words; "" if there are none.

    Args:
        folder: The folder.
        name: The missing name, with or without its ending. Names that differ in their endings, in upper and lower case,
            or in the code points of the same letters are alike.
    """
    for entry in sorted(path.name for path in folder.iterdir()) if folder.is_dir() else ():
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
