"""Laws of every store, a folder or a bucket: whole or not at all, one winner, and no key outside of it."""

from __future__ import annotations

import json
import multiprocessing
import secrets
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from lwfed.store.counting import CountingStore
from lwfed.store.local import LocalStore
from lwfed.store.opening import open_store
from lwfed.store.protocol import Seen, Store
from lwfed.types.errors import CheckpointError


def everything(store: Store) -> list[str]:
    """All keys; of a folder all files, hidden ones too."""
    keys = list(store.list(""))
    if isinstance(store, LocalStore):
        assert keys == sorted(p.relative_to(store.root).as_posix() for p in store.root.rglob("*") if p.is_file())
    return keys


def skip_where_nobody_decides(store: Store) -> None:
    store.write_ref("known", 1, if_absent=True)
    if getattr(store, "conditional", None) is False:
        pytest.skip("rclone decides no races: `.ci/minio` builds MinIO")
    store.delete("known")


def test_what_is_put_is_got_whole_and_in_part(store: Store) -> None:
    content = bytes(range(256)) * 40
    assert store.put("a/b/x.bin", [content[:7], memoryview(content)[7:100], bytearray(content[100:])]) == len(content)
    assert store.get("a/b/x.bin") == content and store.fetch("a/b/x.bin").read_bytes() == content
    for start, stop in ((0, 0), (0, 1), (255, 300), (10239, 10240), (10240, 10240)):
        assert store.get("a/b/x.bin", start=start, stop=stop) == content[start:stop]
    assert store.get("a/b/x.bin", start=10000) == content[10000:]
    assert store.has("a/b/x.bin") and not store.has("a/b") and not store.has("a/b/y.bin")
    with pytest.raises(CheckpointError, match="ends before byte 10241"):
        store.get("a/b/x.bin", start=10000, stop=10241)


def test_a_wide_memory_view_counts_in_bytes(store: Store) -> None:
    numbers = np.arange(5, dtype=np.int64)
    assert store.put("n", [numbers.data]) == 40 == len(store.get("n"))
    assert store.put("empty", []) == 0 and store.get("empty") == b""


def test_a_write_that_fails_leaves_nothing(store: Store) -> None:
    def failing() -> Iterator[bytes]:
        yield b"half" * 100_000
        raise RuntimeError("pulled")

    store.put("kept", [b"old"])
    for key in ("fresh", "kept"):
        with pytest.raises(RuntimeError, match="pulled"):
            store.put(key, failing())
    with pytest.raises(ValueError):
        store.write_ref("ref", float("nan"))
    assert everything(store) == ["kept"] and store.get("kept") == b"old"


def test_a_ref_is_read_as_it_was_written(store: Store) -> None:
    value = {"a": [1, 2.5, None, "é"], "b": {"c": True}}
    assert store.read_ref("r.json") is None
    assert store.write_ref("r.json", value) and store.read_ref("r.json") == value
    assert store.write_ref("r.json", {"b": 1}) and store.read_ref("r.json") == {"b": 1}
    assert json.loads(store.fetch("r.json").read_text()) == {"b": 1}, "readable by people too"


def test_a_ref_is_read_again_only_if_it_changed(store: Store) -> None:
    """As a process polls: what is unchanged is seen as unchanged; a change, a deletion and a return are all seen."""
    for reader in (store, CountingStore(store)):
        assert reader.read_ref_if_changed("r.json", None) == Seen(None, None), "nothing is there"
        assert reader.read_ref_if_changed("r.json", "mark") == Seen(None, None), "nothing is there any more"
        store.write_ref("r.json", {"n": 1})
        first = reader.read_ref_if_changed("r.json", None)
        assert first is not None and first.value == {"n": 1} and first.mark is not None
        assert reader.read_ref_if_changed("r.json", first.mark) is None
        assert reader.read_ref_if_changed("r.json", None) == first, "without a mark it is read"
        store.write_ref("r.json", {"n": 2})
        second = reader.read_ref_if_changed("r.json", first.mark)
        assert second is not None and second.value == {"n": 2} and second.mark not in (None, first.mark)
        assert reader.read_ref_if_changed("r.json", second.mark) is None
        store.delete("r.json")
        assert reader.read_ref_if_changed("r.json", second.mark) == Seen(None, None)


def test_no_change_of_a_polled_ref_is_missed(store: Store) -> None:
    """Not one of equal length in the same instant, nor several between two looks."""
    store.write_ref("r", 0)
    seen = store.read_ref_if_changed("r", None)
    for number in range(1, 10):
        assert seen is not None
        for between in range(number % 4):
            store.write_ref("r", -between)
        store.write_ref("r", number)
        seen = store.read_ref_if_changed("r", seen.mark)
        assert seen is not None and seen.value == number
        assert store.read_ref_if_changed("r", seen.mark) is None


def test_the_first_writer_wins(store: Store) -> None:
    assert store.write_ref("r", 1, if_absent=True)
    assert not store.write_ref("r", 2, if_absent=True)
    assert store.read_ref("r") == 1
    assert store.write_ref("r", 3) and store.read_ref("r") == 3
    assert everything(store) == ["r"]


def test_of_many_threads_exactly_one_wins(store: Store) -> None:
    skip_where_nobody_decides(store)
    for attempt in range(5):
        with ThreadPoolExecutor(16) as pool:
            won = list(pool.map(lambda n, key=f"r{attempt}": store.write_ref(key, n, if_absent=True), range(40)))
        assert won.count(True) == 1
        assert store.read_ref(f"r{attempt}") == won.index(True)
    assert everything(store) == [f"r{n}" for n in range(5)], "no temporary file is left"


def test_of_many_processes_exactly_one_wins(store: Store) -> None:
    skip_where_nobody_decides(store)
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


def test_readers_never_see_half_a_ref(store: Store) -> None:
    values = [{"n": n, "fill": "x" * 20_000} for n in range(2)]
    store.write_ref("r", values[0])
    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(lambda: [store.write_ref("r", values[n % 2]) for n in range(60)])
        while not writing.done():
            assert store.read_ref("r") in values


@pytest.mark.parametrize("content", [b"{", b"", b'{"a": \xff}', b"\x00\x00", b'{"a": 1}}'])
def test_a_ref_that_is_not_json_is_noticed(store: Store, content: bytes) -> None:
    store.put("stages/k/checkpoint.json", [content])
    with pytest.raises(CheckpointError, match="is not JSON") as caught:
        store.read_ref("stages/k/checkpoint.json")
    with pytest.raises(CheckpointError, match="is not JSON"):
        store.read_ref_if_changed("stages/k/checkpoint.json", None)
    assert "remove stages/k from the store" in caught.value.remedy and caught.value.exit_code == 12


@pytest.mark.parametrize("key", ["../x", "a/../../x", "/etc/passwd", "..", "a/.."])
def test_keys_outside_of_the_store_are_refused(store: Store, key: str) -> None:
    for operate in (
        lambda: store.put(key, [b"x"]), lambda: store.get(key), lambda: store.fetch(key), lambda: store.has(key),
        lambda: store.delete(key), lambda: store.read_ref(key), lambda: store.write_ref(key, 1),
        lambda: store.append(key, b"x"), lambda: list(store.list(key)), lambda: store.read_log(key),
        lambda: store.size(key), lambda: store.read_into(key, [bytearray(1)]),
        lambda: store.read_ref_if_changed(key, None),
    ):  # fmt: skip
        with pytest.raises(CheckpointError, match="is not a key"):
            operate()
    assert everything(store) == []


def test_names_with_dots_are_keys(store: Store) -> None:
    store.put("runs/a..b/run.1.json", [b"x"])
    assert list(store.list("runs/")) == ["runs/a..b/run.1.json"]


def test_keys_are_listed_by_prefix_and_sorted(store: Store) -> None:
    keys = ["b/2", "b/10", "a", "b/c/d", "bb/1", "runs/x/run.json"]
    for key in keys:
        store.put(key, [b""])
    assert list(store.list("")) == sorted(keys)
    assert list(store.list("b/")) == ["b/10", "b/2", "b/c/d"]
    assert list(store.list("b")) == ["b/10", "b/2", "b/c/d", "bb/1"], "a prefix is a text, not a folder"
    assert list(store.list("b/1")) == ["b/10"]
    assert list(store.list("nothing/")) == []


def test_folders_are_named_without_what_is_in_them(store: Store) -> None:
    for key in ("stages/b/rounds/001/x", "stages/b/rounds/002/x", "stages/a/plan.json", "stages/file", "stagesx/c/d"):
        store.put(key, [b""])
    assert list(store.folders("stages/")) == ["a", "b"]
    assert list(store.folders("stages/b/rounds/")) == ["001", "002"]
    assert list(store.folders("stages/a/")) == list(store.folders("none/")) == []
    assert list(CountingStore(store).folders("stages/")) == ["a", "b"]


def test_deleting_and_reading_what_is_not_there(store: Store) -> None:
    store.delete("nothing")
    store.put("x", [b"1"])
    store.delete("x")
    assert not store.has("x")
    for read in (store.get, store.fetch):
        with pytest.raises(CheckpointError, match="blocks/x is not in the store") as caught:
            read("blocks/x")
        assert "backup" in caught.value.remedy
    with pytest.raises(CheckpointError, match="blocks/x is not in the store"):
        store.read_into("blocks/x", [bytearray(3)])
    keys = [f"many/{n}" for n in range(20)]
    for key in keys:
        store.put(key, [b"x"])
    store.delete(*keys[1:], "many/none")
    assert list(store.list("")) == keys[:1]


def test_a_log_grows_at_its_end(store: Store) -> None:
    store.append("runs/r/events.jsonl", b"1\n")
    store.append("runs/r/events.jsonl", b"2\n")
    assert store.read_log("runs/r/events.jsonl") == b"1\n2\n"
    again = open_store(store.uri)  # the next process
    again.append("runs/r/events.jsonl", b"3\n")
    assert again.read_log("runs/r/events.jsonl") == b"1\n2\n3\n"
    assert list(store.list("")) == list(store.list("runs/r/events")) == ["runs/r/events.jsonl"], "a log is one key"
    assert store.read_log("runs/r") == store.read_log("nothing") == b""
    store.delete("runs/r/events.jsonl")
    assert everything(store) == [] and store.read_log("runs/r/events.jsonl") == b""
    store.append("runs/r/events.jsonl", b"again\n")
    assert store.read_log("runs/r/events.jsonl") == b"again\n"


def test_an_object_is_read_into_memory_that_is_there(store: Store) -> None:
    content = bytes(range(256)) * 9
    store.put("x", [content])
    for sizes in ((2304,), (1, 0, 2303), (1000, 1304)):
        buffers = [bytearray(size) for size in sizes]
        store.read_into("x", buffers)
        assert b"".join(buffers) == content
    words = np.zeros(288, dtype=np.int64)
    store.read_into("x", [words.data])
    assert words.tobytes() == content, "wide views are filled too"
    start = bytearray(300)
    store.read_into("x", [start], nbytes=2304)
    assert start == content[:300]
    for sizes, nbytes in (((2303,), None), ((2305,), None), ((10,), 2303), ((10,), 2305), ((), 5), ((3000,), 2304)):
        with pytest.raises(CheckpointError, match="corrupted: it has 2304 bytes"):
            store.read_into("x", [bytearray(size) for size in sizes], nbytes=nbytes)
    store.put("empty", [])
    store.read_into("empty", [])
    store.read_into("empty", [bytearray(0)], nbytes=0)
    with pytest.raises(CheckpointError, match="it has 0 bytes"):
        store.read_into("empty", [bytearray(1)])


def test_a_named_object_is_asked_for_its_name_when_its_bytes_are_known(store: Store) -> None:
    taken: list[int] = []

    def chunks() -> Iterator[bytes]:
        for number in range(3):
            taken.append(number)
            yield bytes([number]) * 1000

    def name() -> str:
        assert taken == [0, 1, 2]
        return f"{len(taken)}.bin"

    assert store.put_named("a/b", chunks(), name=name) == 3000
    assert store.get("a/b/3.bin") == b"".join(bytes([number]) * 1000 for number in range(3))
    assert store.put_named("a/b", [b"again"], name=lambda: None) == 0
    for failing in ((1 // n for n in (1, 0)), [b"x"]):
        with pytest.raises((ZeroDivisionError, TypeError, CheckpointError)):
            store.put_named("a/b", failing, name=lambda: "../../../x")  # type: ignore[arg-type]
    assert everything(store) == ["a/b/3.bin"]


def test_parts_arrive_in_order_and_are_there_when_they_are_told(store: Store) -> None:
    content = secrets.token_bytes(20_000_003)
    store.put("x", [content])
    for start, sizes, total in ((0, (7, 20_000_000 - 7, 3), 20_000_003), (5, (9_000_000, 0, 2), None)):
        buffers = [bytearray(size) for size in sizes]
        seen = [0]
        for there in store.read_parts("x", buffers, start=start, total=total):
            assert there > seen[-1]
            assert b"".join(buffers)[:there] == content[start : start + there]
            seen.append(there)
        assert seen[-1] == sum(sizes) and len(seen) > 2, "a few megabytes at a time"
    for wrong in (19_999_999, 20_000_004):
        with pytest.raises(CheckpointError, match="corrupted: it has 20000003 bytes"):
            list(store.read_parts("x", [bytearray(10)], total=wrong))
    with pytest.raises(CheckpointError, match="ends before byte 20000010"):
        list(store.read_parts("x", [bytearray(10)], start=20_000_000))
    with pytest.raises(CheckpointError, match="not in the store"):
        list(store.read_parts("y", [bytearray(10)]))


def test_sizes(store: Store) -> None:
    store.put("x", [b"abc"])
    store.put("empty", [])
    assert (store.size("x"), store.size("empty"), store.size("y")) == (3, 0, None)
    assert not store.has("y") and store.has("empty")


def test_an_object_is_fetched_to_a_named_file(store: Store, tmp_path: Path) -> None:
    store.put("a/x.html", [b"abc"])
    to = tmp_path / "copy"
    assert store.fetch("a/x.html", to=to) == to and to.read_bytes() == b"abc"
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["copy"]
    assert store.fetch("a/x.html").name == "x.html", "whoever shows it sees its name"
    with pytest.raises(CheckpointError, match="not in the store"):
        store.fetch("nothing", to=tmp_path / "other")


def test_what_is_counted_is_what_went_through(store: Store, tmp_path: Path) -> None:
    counting = CountingStore(store)
    assert counting.verifies_writes == store.verifies_writes
    counting.put("x.safetensors", [b"0123456789"])
    counting.put("x.json", [b"0123456789"])
    counting.put_named("named", [b"01234"], name=lambda: "x.json")
    assert (counting.bytes_written, counting.bytes_read) == (10, 0)
    counting.get("x.safetensors", start=2, stop=5)
    assert counting.bytes_read == 3
    counting.read_into("x.safetensors", [memoryview(bytearray(4)), bytearray(6)])
    assert counting.bytes_read == 13
    counting.fetch("x.safetensors", to=tmp_path / "x")
    assert counting.bytes_read == 23 and counting.size("x.safetensors") == 10
    counting.append("log", b"1")
    assert counting.read_log("log") == b"1" and counting.has("x.json") and list(counting.list("x."))
    counting.delete("x.json", "named/x.json", "x.safetensors", "log")
    assert (counting.bytes_written, counting.bytes_read) == (10, 23) and everything(store) == []
