"""A folder is made whole or not at all, and the next call needs no help after one that was interrupted or killed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lwfed.data.makers.whole import PART, made_whole, refuse_used
from lwfed.types.errors import SpecError, UnreachableError

MAKES = ("pictures", "sounds", "table.csv")


def write(part: Path, mark: str) -> None:
    (part / "pictures").mkdir()
    (part / "pictures" / mark).write_text(mark)
    (part / "table.csv").write_text(mark)


def contents(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


WHOLE = {"pictures/b": "b", "table.csv": "b"}


@pytest.mark.parametrize("there", [True, False])
@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_after_an_error_nothing_is_left(tmp_path: Path, there: bool, error: type[BaseException]) -> None:
    folder = tmp_path / "data"
    if there:
        folder.mkdir()
    with pytest.raises(error), made_whole(folder, makes=MAKES) as part:
        write(part, "a")
        raise error
    assert folder.exists() == there and not contents(tmp_path)
    with made_whole(folder, makes=MAKES) as part:
        write(part, "b")
    assert contents(folder) == WHOLE and not (folder / PART).exists()


@pytest.mark.parametrize("moved", range(4))
def test_a_call_that_was_killed_is_made_again(tmp_path: Path, moved: int) -> None:
    """Killed while it wrote, or after it moved some of the entries or all."""
    pid = os.fork()
    if not pid:
        whole = made_whole(tmp_path, makes=MAKES)
        part = whole.__enter__()
        write(part, "a")
        (part / "sounds").mkdir()
        for name in MAKES[:moved]:
            (part / name).rename(tmp_path / name)
        os._exit(9)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 9
    assert (tmp_path / PART).exists()
    with made_whole(tmp_path, makes=MAKES) as part:
        write(part, "b")
    assert contents(tmp_path) == WHOLE and not (tmp_path / "sounds").exists()


def test_what_is_not_ours_is_never_touched(tmp_path: Path) -> None:
    mine = tmp_path / "pictures" / "mine.png"
    mine.parent.mkdir()
    mine.write_text("mine")
    for other, names in (("pictures", ()), ("notes.txt", (PART, "notes.txt"))):
        for name in names:
            (tmp_path / name).mkdir()
        with pytest.raises(SpecError, match=f"already has {other}"):
            refuse_used(tmp_path, makes=MAKES)
        with pytest.raises(SpecError, match=f"already has {other}"), made_whole(tmp_path, makes=MAKES):
            pass
    assert mine.read_text() == "mine"


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for folder, kind in ((tmp_path / "file", SpecError), (tmp_path / "file" / "data", UnreachableError)):
        with pytest.raises(kind, match=str(folder)), made_whole(folder, makes=MAKES):
            pass
