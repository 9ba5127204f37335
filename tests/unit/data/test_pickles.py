"""A pickle of arrays is read whatever its protocol; one that asks for anything else runs nothing."""

from __future__ import annotations

import io
import os
import pickle
import pickletools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lwfed.data.pickles import parse_pickle, read_pickle
from lwfed.types.errors import DataError

VALUES: list[Any] = [
    ["1", 3, np.int64(2), np.arange(6.0).reshape(2, 3)],
    {"x": np.float32(0.5), "names": np.array(["ax", "ay"]), "flags": np.array([True]), "order": np.asfortranarray(
        np.arange(6).reshape(2, 3))},
]  # fmt: skip


class Runs:
    """What a malicious pickle holds."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.function, self.arguments


def equal(one: Any, other: Any) -> bool:
    if isinstance(one, np.ndarray):
        return bool(np.array_equal(one, other)) and one.dtype == other.dtype
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(equal, one, other))
    return bool(one == other) and type(one) is type(other)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_arrays_numbers_and_texts_come_back(protocol: int, tmp_path: Path) -> None:
    content = pickle.dumps(VALUES, protocol=protocol)
    assert equal(parse_pickle(content, what="it"), VALUES)
    names = {f"{arg}".replace(" ", ".") for code, arg, _ in pickletools.genops(content) if code.name == "GLOBAL"}
    older = content
    for name in names:  # as numpy 1 wrote them
        module, _, rest = name.rpartition(".")
        older = older.replace(f"c{module}\n{rest}\n".encode(), f"c{module.replace('_core', 'core')}\n{rest}\n".encode())
    assert equal(parse_pickle(older, what="it"), VALUES)
    (tmp_path / "it.pkl").write_bytes(content)
    assert equal(read_pickle(tmp_path / "it.pkl"), VALUES)


def test_a_npy_file_of_objects_is_read() -> None:
    stream = io.BytesIO()
    np.save(stream, np.array({"X": [np.ones((2, 6))], "y": np.arange(2)}, dtype=object), allow_pickle=True)
    found = parse_pickle(stream.getvalue(), what="it").item()
    assert equal(found, {"X": [np.ones((2, 6))], "y": np.arange(2)})


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize(
    "content",
    [
        Runs(os.system, "touch ran"), Runs(eval, "1"), Runs(getattr, 1, "real"), Runs(np.load, "x"), os.getcwd,
        Runs(np.frombuffer, b"12345678"), [np.zeros(2), Runs(os.mkdir, "ran")], np.random.default_rng(0), Path("x"),
    ],
)  # fmt: skip
def test_a_pickle_that_asks_for_more_runs_nothing(
    content: Any, protocol: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=r"it asks for .*, which is no part of an array"):
        parse_pickle(pickle.dumps(content, protocol=protocol), what="it")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "content",
    [b"", b"no pickle", pickle.dumps(VALUES)[:-20], b"\x93NUMPY\x01", b"c_codecs\nencode\n(Vx\nVidna\ntR."],
)
def test_a_damaged_pickle_is_refused_by_name(content: bytes) -> None:
    with pytest.raises(DataError, match="the file is not a pickle of numpy arrays alone"):
        parse_pickle(content, what="the file")
