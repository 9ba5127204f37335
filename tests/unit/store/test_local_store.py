"""Laws of the store in a folder alone; those of every store are in test_stores.py."""

from __future__ import annotations

import os
import resource
import stat
from pathlib import Path

import pytest

from lwfed.store.local import SCRATCH, LocalStore
from lwfed.store.opening import open_store
from lwfed.types.errors import DiskFullError, SpecError, UnreachableError


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path / "store")


def test_what_a_kill_left_is_neither_listed_nor_kept_for_ever(store: LocalStore) -> None:
    store.put("a", [b""])
    old, new = store.root / SCRATCH / "old", store.root / SCRATCH / "new"
    for left in (old, new):
        left.write_bytes(b"half")
    os.utime(old, (0, 0))
    assert list(store.list("")) == ["a"]
    store.put("b", [b""])
    again = LocalStore(store.root)  # the next process
    again.put("c", [b""])
    assert not old.exists(), "a day later nobody writes it any more"
    assert new.exists(), "another process may be writing it"


def test_others_may_read_what_is_written(store: LocalStore) -> None:
    """A store that people share: the umask decides, not the temporary file's own mode."""
    before = os.umask(0o022)
    try:
        store.put("object", [b"x"])
        store.write_ref("ref", 1)
        store.write_ref("first", 1, if_absent=True)
    finally:
        os.umask(before)
    for key in ("object", "ref", "first"):
        assert stat.S_IMODE(store.fetch(key).stat().st_mode) == 0o644, key


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UnreachableError, match=r"cannot use .* for x") as caught:
        LocalStore(tmp_path / "file").write_ref("x", 1)
    assert "-o store.uri=FOLDER" in caught.value.remedy and caught.value.exit_code == 17


@pytest.mark.parametrize("place", ["/proc/x", "/dev/null/x", f"{'a' * 300}"])
def test_a_place_where_no_folder_can_be_made_is_named(place: str, tmp_path: Path) -> None:
    store = LocalStore(tmp_path / place)
    for write in (lambda: store.put("x", [b"1"]), lambda: store.append("x", b"1")):
        with pytest.raises(UnreachableError, match=place) as caught:
            write()
        assert caught.value.remedy


def test_a_limit_on_the_size_of_files_is_named(store: LocalStore) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000, hard))
    try:
        with pytest.raises(DiskFullError) as caught:
            store.put("x", [bytes(2_000)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "ulimit -f" in caught.value.remedy and not list(store.list(""))


def test_uris(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert open_store(f"file://{tmp_path}/s").root == open_store(f"{tmp_path}/s").root == tmp_path / "s"
    monkeypatch.chdir(tmp_path)
    assert open_store("./s").uri == str(tmp_path / "s")
    monkeypatch.chdir("/")
    assert not (tmp_path / "s").exists(), "opening writes nothing"
    with pytest.raises(SpecError, match="gs:"):
        open_store("gs://bucket/x")
