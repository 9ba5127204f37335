"""A folder of data that is written whole or not at all: what an interrupted call left, the next one removes.

Everything is written to a hidden folder in it, so that it may be a volume or the working directory, and moves up at the
end.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from lwfed.types.errors import SpecError
from lwfed.types.places import place_error

PART = ".lwfed-part"
"""Name of the hidden folder."""


def refuse_used(folder: Path, *, makes: Sequence[str]) -> None:
    """Raises SpecError if a folder has anything but what an interrupted call left; `makes` is that of `made_whole`."""
    if folder.exists() and not folder.is_dir():
        raise SpecError(f"{folder} is no folder", remedy="name a new one")
    there = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    others = sorted(there - {PART, *makes} if PART in there else there)
    if others:
        raise SpecError(f"{folder} already has {others[0]}", remedy="name a new folder, or empty this one")


@contextmanager
def made_whole(folder: Path, *, makes: Sequence[str]) -> Iterator[Path]:
    """Yields a folder to write to. In the end its entries move to the given folder; after an error nothing is left.

    Args:
        folder: The folder to make; it may exist if it is empty, or if an interrupted call left it.
        makes: Names of the entries, in the order in which they move. The last is the one without which no source reads
            the others.

    Raises:
        SpecError: The folder has something else in it.
        DiskFullError, UnreachableError: It cannot be written.
    """
    refuse_used(folder, makes=makes)
    part, new, whole = folder / PART, not folder.exists(), False
    try:
        for name in (*makes, PART) if part.exists() else ():
            _remove(folder / name)
        part.mkdir(parents=True)
        yield part
        for name in makes:
            if (part / name).exists():
                (part / name).rename(folder / name)
        part.rmdir()
        whole = True
    except OSError as error:
        known = place_error(
            error, where=f"{folder} for the data", full="free some space, or name a folder elsewhere",
            closed="name a writable folder",
        )  # fmt: skip
        if known is None:
            raise
        raise known from error
    finally:
        if not whole:
            with suppress(OSError):
                for name in (*makes, PART):
                    _remove(folder / name)
                if new:
                    folder.rmdir()


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
