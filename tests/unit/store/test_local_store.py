"""Laws of the store in a folder: whole or not at all, one winner, and no key outside of it."""

from __future__ import annotations

import json
import multiprocessing
import os
import stat
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from lwfed.store.local import SCRATCH, LocalStore, open_store
from lwfed.types.errors import CheckpointError, SpecError, UnreachableError


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path / "store")


def files(store: LocalStore) -> list[str]:
    """All files, hidden ones too."""
    return sorted(p.relative_to(store.root).as_posix() for p in store.root.rglob("*") if p.is_file())


def test_what_is_put_is_got_whole_and_in_part(store: LocalStore) -> None:
    content = bytes(range(256)) * 40
    assert store.put("a/b/x.bin", [content[:7], memoryview(content)[7:100], bytearray(content[100:])]) == len(content)
    assert store.get("a/b/x.bin") == content and store.fetch("a/b/x.bin").read_bytes() == content
    for start, stop in ((0, 0), (0, 1), (255, 300), (10239, 10240), (10240, 10240)):
        assert store.get("a/b/x.bin", start=start, stop=stop) == content[start:stop]
    assert store.get("a/b/x.bin", start=10000) == content[10000:]
    assert store.has("a/b/x.bin") and not store.has("a/b") and not store.has("a/b/y.bin")
    with pytest.raises(CheckpointError, match="ends before byte 10241"):
        store.get("a/b/x.bin", start=10000, stop=10241)


def test_a_wide_memory_view_counts_in_bytes(store: LocalStore) -> None:
    numbers = np.arange(5, dtype=np.int64)
    assert store.put("n", [numbers.data]) == 40 == len(store.get("n"))
    assert store.put("empty", []) == 0 and store.get("empty") == b""


def test_a_write_that_fails_leaves_nothing(store: LocalStore) -> None:
    def failing() -> Iterator[bytes]:
        yield b"half" * 100_000
        raise RuntimeError("pulled")

    store.put("kept", [b"old"])
    for key in ("fresh", "kept"):
        with pytest.raises(RuntimeError, match="pulled"):
            store.put(key, failing())
    with pytest.raises(ValueError):
        store.write_ref("ref", float("nan"))
    assert files(store) == ["kept"] and store.get("kept") == b"old"


def test_a_ref_is_read_as_it_was_written(store: LocalStore) -> None:
    value = {"a": [1, 2.5, None, "é"], "b": {"c": True}}
    assert store.read_ref("r.json") is None
    assert store.write_ref("r.json", value) and store.read_ref("r.json") == value
    assert store.write_ref("r.json", {"b": 1}) and store.read_ref("r.json") == {"b": 1}
    assert json.loads(store.fetch("r.json").read_text()) == {"b": 1}, "readable by people too"


def test_the_first_writer_wins(store: LocalStore) -> None:
    assert store.write_ref("r", 1, if_absent=True)
    assert not store.write_ref("r", 2, if_absent=True)
    assert store.read_ref("r") == 1
    assert store.write_ref("r", 3) and store.read_ref("r") == 3
    assert files(store) == ["r"]


def test_of_many_threads_exactly_one_wins(store: LocalStore) -> None:
    for attempt in range(5):
        with ThreadPoolExecutor(16) as pool:
            won = list(pool.map(lambda n, key=f"r{attempt}": store.write_ref(key, n, if_absent=True), range(40)))
        assert won.count(True) == 1
        assert store.read_ref(f"r{attempt}") == won.index(True)
    assert files(store) == [f"r{n}" for n in range(5)], "no temporary file is left"


def test_of_many_processes_exactly_one_wins(store: LocalStore) -> None:
    context = multiprocessing.get_context("fork")
    ready, results = context.Barrier(4), context.SimpleQueue()

    def race(number: int) -> None:
        ready.wait()
        for attempt in range(25):
            if store.write_ref(f"r{attempt}", number, if_absent=True):
                results.put((attempt, number))
        results.put(None)

    racers = [context.Process(target=race, args=(number,)) for number in range(4)]
    for racer in racers:
        racer.start()
    won: list[tuple[int, int]] = []
    done = 0
    while done < 4:
        item = results.get()
        done += item is None
        won += [item] if item else []
    for racer in racers:
        racer.join()
    assert sorted(attempt for attempt, _ in won) == list(range(25)), "one winner each"
    assert all(store.read_ref(f"r{attempt}") == number for attempt, number in won)


def test_readers_never_see_half_a_ref(store: LocalStore) -> None:
    values = [{"n": n, "fill": "x" * 20_000} for n in range(2)]
    store.write_ref("r", values[0])
    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(lambda: [store.write_ref("r", values[n % 2]) for n in range(60)])
        while not writing.done():
            assert store.read_ref("r") in values


@pytest.mark.parametrize("content", [b"{", b"", b'{"a": \xff}', b"\x00\x00", b'{"a": 1}}'])
def test_a_ref_that_is_not_json_is_noticed(store: LocalStore, content: bytes) -> None:
    store.put("stages/k/checkpoint.json", [content])
    with pytest.raises(CheckpointError, match="is not JSON") as caught:
        store.read_ref("stages/k/checkpoint.json")
    assert "remove stages/k from the store" in caught.value.remedy and caught.value.exit_code == 12


@pytest.mark.parametrize("key", ["../x", "a/../../x", "/etc/passwd", "..", "a/.."])
def test_keys_outside_of_the_store_are_refused(store: LocalStore, key: str) -> None:
    for operate in (
        lambda: store.put(key, [b"x"]), lambda: store.get(key), lambda: store.fetch(key), lambda: store.has(key),
        lambda: store.delete(key), lambda: store.read_ref(key), lambda: store.write_ref(key, 1),
        lambda: store.append(key, b"x"), lambda: list(store.list(key)),
    ):  # fmt: skip
        with pytest.raises(CheckpointError, match="is not a key"):
            operate()
    assert not (store.root.parent / "x").exists()


def test_names_with_dots_are_keys(store: LocalStore) -> None:
    store.put("runs/a..b/run.1.json", [b"x"])
    assert list(store.list("runs/")) == ["runs/a..b/run.1.json"]


def test_keys_are_listed_by_prefix_and_sorted(store: LocalStore) -> None:
    keys = ["b/2", "b/10", "a", "b/c/d", "bb/1", "runs/x/run.json"]
    for key in keys:
        store.put(key, [b""])
    assert list(store.list("")) == sorted(keys)
    assert list(store.list("b/")) == ["b/10", "b/2", "b/c/d"]
    assert list(store.list("b")) == ["b/10", "b/2", "b/c/d", "bb/1"], "a prefix is a text, not a folder"
    assert list(store.list("b/1")) == ["b/10"]
    assert list(store.list("nothing/")) == []


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


def test_deleting_and_reading_what_is_not_there(store: LocalStore) -> None:
    store.delete("nothing")
    store.put("x", [b"1"])
    store.delete("x")
    assert not store.has("x")
    for read in (store.get, store.fetch):
        with pytest.raises(CheckpointError, match="blocks/x is not in the store") as caught:
            read("blocks/x")
        assert "backup" in caught.value.remedy


def test_a_log_grows_at_its_end(store: LocalStore) -> None:
    store.append("runs/r/events.jsonl", b"1\n")
    store.append("runs/r/events.jsonl", b"2\n")
    assert store.get("runs/r/events.jsonl") == b"1\n2\n"


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
    with pytest.raises(UnreachableError, match="cannot write x") as caught:
        LocalStore(tmp_path / "file").write_ref("x", 1)
    assert "-o store.uri=FOLDER" in caught.value.remedy and caught.value.exit_code == 17


def test_uris(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert open_store(f"file://{tmp_path}/s").root == open_store(f"{tmp_path}/s").root == tmp_path / "s"
    monkeypatch.chdir(tmp_path)
    assert open_store("./s").uri == str(tmp_path / "s")
    monkeypatch.chdir("/")
    assert not (tmp_path / "s").exists(), "opening writes nothing"
    with pytest.raises(SpecError, match="no store for gs://"):
        open_store("gs://bucket/x")
