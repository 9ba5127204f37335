"""Files are known by their content: hashed once, and read again when anything about them changes."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest

from lwfed.data.digests import MISSING, FileDigests, list_files, version_of
from lwfed.data.protocol import open_source
from lwfed.spec.data import DataSpec

CONTENTS = {"a.jpg": b"first", "b/c.wav": b"second", "d": b""}


def write(root: Path) -> Path:
    for name, content in CONTENTS.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


class Hashed:
    """Counts the files that are read."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, int]] = []

    def __call__(self, done: int, total: int) -> None:
        self.seen.append((done, total))


def test_digests_are_of_the_contents_and_computed_once(tmp_path: Path) -> None:
    root, kept = write(tmp_path / "data"), tmp_path / "cache"
    digests, first, second, third = FileDigests(kept), Hashed(), Hashed(), Hashed()
    found = digests.of(root, [*CONTENTS, "none"], progress=first)
    assert found == {**{n: hashlib.sha256(c).hexdigest() for n, c in CONTENTS.items()}, "none": MISSING}
    assert first.seen == [(1, 3), (2, 3), (3, 3)]
    assert digests.of(root, CONTENTS, progress=second).items() <= found.items() and not second.seen
    assert FileDigests(kept).of(root, CONTENTS, progress=third).items() <= found.items() and not third.seen
    assert not [path for path in root.rglob("*") if path.is_file() and str(path.relative_to(root)) not in CONTENTS]


@pytest.mark.parametrize("how", ["in place", "same time", "renamed over", "touched"])
def test_a_file_of_the_same_length_is_read_again(tmp_path: Path, how: str) -> None:
    root, kept = write(tmp_path / "data"), tmp_path / "cache"
    before = FileDigests(kept).of(root, CONTENTS)
    path, times = root / "a.jpg", (root / "a.jpg").stat()
    if how == "renamed over":
        (root / "new").write_bytes(b"FIRST")
        os.utime(root / "new", ns=(times.st_atime_ns, times.st_mtime_ns))
        (root / "new").replace(path)
    elif how == "touched":
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns + 1))
    else:
        path.write_bytes(b"FIRST")
    if how == "same time":
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))  # its change time tells
    read = Hashed()
    after = FileDigests(kept).of(root, CONTENTS, progress=read)
    assert read.seen == [(1, 1)]
    assert (after == before) == (how == "touched") and after["b/c.wav"] == before["b/c.wav"]


@pytest.mark.parametrize("damaged", [b"", b"[]", b'{"a.jpg": 3}', b'{"a.jpg": [1, 2]}', b"\xff", b"{" * 10_000])
def test_a_damaged_or_read_only_cache_costs_time_only(tmp_path: Path, damaged: bytes) -> None:
    root, kept = write(tmp_path / "data"), tmp_path / "cache"
    expected = FileDigests(kept).of(root, CONTENTS)
    (file,) = (kept / "digests").iterdir()
    file.write_bytes(damaged)
    assert FileDigests(kept).of(root, CONTENTS) == expected
    assert json.loads(file.read_bytes()).keys() == CONTENTS.keys(), "written again"
    (tmp_path / "file").write_bytes(b"")
    assert FileDigests(tmp_path / "file").of(root, CONTENTS) == expected
    assert FileDigests().of(root, CONTENTS) == expected


def test_processes_that_hash_other_files_of_a_root_add_up(tmp_path: Path) -> None:
    root, kept = write(tmp_path / "data"), tmp_path / "cache"
    one, two, read = FileDigests(kept), FileDigests(kept), Hashed()
    one.of(root, ["a.jpg"])
    two.of(root, ["b/c.wav"])
    one.of(root, ["d"])
    FileDigests(kept).of(root, CONTENTS, progress=read)
    assert read.seen == []


def test_a_folder_in_place_of_a_file_is_a_missing_file(tmp_path: Path) -> None:
    assert FileDigests().of(write(tmp_path / "data"), ["b"]) == {"b": MISSING}


def test_generated_data_have_no_files_and_keep_their_version() -> None:
    source = open_source(DataSpec())
    assert list_files(source, FileDigests()) == {} and version_of(source, {}) == source.version()
