"""Laws of signals in tables: files and cells say the same, their content counts, and what is wrong is named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from lwfed.catalog.sources.table import DESCRIPTION, Columns
from lwfed.data.batches import check_examples
from lwfed.data.digests import FileDigests, changed_files, list_files, version_of
from lwfed.data.inputs import InputSettings, Window
from lwfed.data.protocol import open_source
from lwfed.data.reading import Reader
from lwfed.data.series import standardised
from lwfed.data.sources.table import Rows
from lwfed.plan.stages import plan_stages
from lwfed.spec.data import DataSpec
from lwfed.spec.load import build_spec
from lwfed.types.errors import DataError
from lwfed.types.modalities import of_kind
from tests.inertial import CONFIG
from tests.tables import SIGNAL_FILES, WRITERS, write_jsonl, write_parquet

SIGNAL = np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32)


def opened(root: Path, **keys: Any) -> Rows:
    source = open_source(DataSpec.model_validate({"source": "table", "root": str(root), **keys}))
    assert isinstance(source, Rows)
    return source


def version(root: Path, **keys: Any) -> str:
    source = opened(root, **keys)
    return version_of(source, list_files(source, FileDigests()))


def test_a_table_has_a_column_for_every_modality() -> None:
    assert DESCRIPTION.modalities <= Columns.model_fields.keys() and DESCRIPTION.modalities > {*of_kind("series")}


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize("ending", SIGNAL_FILES)
def test_every_file_has_the_signal(tmp_path: Path, kind: str, ending: str) -> None:
    SIGNAL_FILES[ending](tmp_path / f"a.{ending}", SIGNAL)
    WRITERS[kind](tmp_path, [{"series": f"a.{ending}", "label": "x", "split": "train"}])
    (example,) = opened(tmp_path).examples("train")
    assert example.id == f"a.{ending}" and example.items == {"series": f"a.{ending}"} and "series" not in example.lacks
    assert np.array_equal(opened(tmp_path).series(example, "series"), SIGNAL)
    assert opened(tmp_path).files == {example.id: (f"a.{ending}",)} and opened(tmp_path).left_out() == {}


def test_a_cell_has_the_signal_itself(tmp_path: Path) -> None:
    rows = [
        {"id": "a", "acc": SIGNAL.tolist(), "gyroscope": SIGNAL[:, 0].tolist(), "text": "t", "split": "train"},
        {"id": "b", "acc": None, "gyroscope": [], "text": "t", "split": "train"},
    ]
    versions = set()
    for write, name in ((write_jsonl, "table.jsonl"), (write_parquet, "table.parquet")):
        write(tmp_path, rows)
        source = opened(tmp_path, columns={"accelerometer": "acc"})
        a, b = source.examples("train")
        assert np.array_equal(source.series(a, "accelerometer"), SIGNAL) and source.files == {"a": (), "b": ()}
        assert np.array_equal(source.series(a, "gyroscope"), SIGNAL[:, :1]), "one channel"
        assert {"accelerometer", "gyroscope"} <= {*b.lacks}
        with pytest.raises(DataError, match="b has no accelerometer"):
            source.series(b, "accelerometer")
        versions.add(source.version())
        (tmp_path / name).unlink()
    assert len(versions) == 1, "the numbers count, and not the format"
    rows[0]["acc"][0][0] += 1e-6
    write_jsonl(tmp_path, rows)
    assert opened(tmp_path, columns={"accelerometer": "acc"}).version() not in versions


def test_equal_signals_are_one_item_and_rows_of_one_signal_one_example(tmp_path: Path) -> None:
    write_jsonl(tmp_path, [{"series": SIGNAL.tolist(), "text": text} for text in ("one", "two")])
    one, two = opened(tmp_path).examples("train") + opened(tmp_path).examples("test")
    assert one.id == "row 1" and two.id == "row 2" and one.item("series") == two.item("series")
    assert not opened(tmp_path).examples("test"), "one signal, one side"
    SIGNAL_FILES["npy"](tmp_path / "a.npy", SIGNAL)
    write_jsonl(tmp_path, [{"series": "a.npy", "text": text} for text in ("one", "two")])
    (one,) = opened(tmp_path).examples("train") + opened(tmp_path).examples("test")
    assert one.captions == ("one", "two")


def test_the_version_is_that_of_the_content_wherever_it_lies(tmp_path: Path) -> None:
    found = []
    for name in ("here", "there"):
        (tmp_path / name / "in").mkdir(parents=True)
        SIGNAL_FILES["npy"](tmp_path / name / "in/a.npy", SIGNAL)
        write_jsonl(tmp_path / name, [{"series": "in/a.npy"}])
        found.append(version(tmp_path / name))
    assert found[0] == found[1]
    source = opened(tmp_path / "here")
    listing = list_files(source, FileDigests())
    SIGNAL_FILES["npy"](tmp_path / "here/in/a.npy", -SIGNAL)
    assert version(tmp_path / "here") != found[0]
    examples = source.examples("train") + source.examples("test")
    assert changed_files(source, examples, listing=listing, digests=FileDigests()) == {"in/a.npy": "in/a.npy"}


@pytest.mark.parametrize("inline", [False, True])
def test_each_channel_is_standardised_by_itself(tmp_path: Path, inline: bool) -> None:
    SIGNAL_FILES["npy"](tmp_path / "a.npy", SIGNAL)
    write_jsonl(tmp_path, [{"gyroscope": SIGNAL.tolist() if inline else "a.npy", "split": "train"}])
    source, window = opened(tmp_path), Window(8, 3)
    settings = InputSettings(modalities=("gyroscope",), windows={"gyroscope": window})
    found = Reader(source, source.examples("train"), settings, None, False).item((0, 0))["gyroscope"]
    assert found.dtype == np.float32 and np.array_equal(found, standardised(SIGNAL, window=window, what=""))
    assert np.allclose(found.mean(0), 0, atol=1e-6) and np.allclose(found.std(0), 1, atol=1e-4)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-8])


def npz(path: Path) -> None:
    with path.open("wb") as file:
        np.savez(file, SIGNAL)


def text(content: str | bytes) -> Callable[[Path], None]:
    return lambda path: (path.write_bytes(content.encode() if isinstance(content, str) else content), None)[1]


def array(values: Any, **more: Any) -> Callable[[Path], None]:
    return lambda path: np.save(path, values, **more)


def parquet(**columns: Any) -> Callable[[Path], None]:
    return lambda path: pyarrow.parquet.write_table(pyarrow.table(columns), path)


NAN, INF, HUGE = SIGNAL.copy(), SIGNAL.copy(), SIGNAL.astype(np.float64)
NAN[3, 1], INF[7, 2], HUGE[0, 0] = np.nan, -np.inf, 1e300
WRONG_FILES: list[tuple[str, Callable[[Path], None], str]] = [
    ("a.npy", array(SIGNAL[:-1]), "has the shape [7, 3], but its encoder takes windows of 8 samples of 3 axes"),
    ("a.npy", array(SIGNAL[:, :2]), "has the shape [8, 2]"),
    ("a.npy", array(SIGNAL[:, 0]), "has the shape [8, 1]"),
    ("a.npy", array(SIGNAL[None]), "has float32 of shape [1, 8, 3]"),
    ("a.npy", array(np.zeros((0, 3))), "has float64 of shape [0, 3]"),
    ("a.npy", array(SIGNAL > 0), "has bool of shape"),
    ("a.npy", array(SIGNAL.astype(complex)), "has complex128"),
    ("a.npy", array(SIGNAL.astype(str)), "has <U"),
    ("a.npy", array(np.array([{}] * 24).reshape(8, 3), allow_pickle=True), "is no array"),
    ("a.npy", array(NAN), "a value that is not a finite number"),
    ("a.npy", array(INF), "a value that is not a finite number"),
    ("a.npy", array(HUGE), "a value that is not a finite number"),
    ("a.npy", text(""), "is no .npy file"),
    ("a.npy", text("0,1,2\n"), "is no .npy file"),
    ("a.npy", npz, "is no .npy file"),
    ("a.npy", text(b"\x93NUMPY\x01\x00\x02"), "is no array"),
    ("a.npy", lambda path: (np.save(path, SIGNAL), cut(path), None)[2], "is no array"),
    ("a.csv", text(""), "is empty"),
    ("a.csv", text("x,y,z\n"), "a header and no numbers"),
    ("a.csv", text("x,y,z\n" + "1,2,3\n" * 7), "has the shape [7, 3]"),
    ("a.csv", text("x,y,z\n1,2,3\n1,2,three\n"), "has 'three' in line 3, not a number"),
    ("a.csv", text("1,2,3O\n1,2,3\n"), "has '3O' in line 1, not a number"),
    ("a.csv", text("1,2,3\n\n1,2\n"), "has 2 numbers in line 3, and 3 in line 1"),
    ("a.csv", text("1,2,3\n1,,3\n"), "has '' in line 2, not a number"),
    ("a.csv", text("x;y;z\n1;2;3\n"), "has '1;2;3' in line 2, not a number"),
    ("a.csv", text("1,2,3\n" * 7 + "1,2,nan\n"), "a value that is not a finite number"),
    ("a.csv", text("é,y\n1,2\n".encode("latin-1")), "is not UTF-8"),
    ("a.csv", text(b"\x1f\x8bxx"), "is compressed"),
    ("a.parquet", text(b"PAR1"), "is no Parquet table"),
    ("a.parquet", parquet(x=[1.0, 2.0], y=["a", "b"]), "has 'a' in its column y, not a number"),
    ("a.parquet", parquet(x=[True, False]), "has True in its column x"),
    ("a.parquet", parquet(x=[1.0] * 8, y=[1.0] * 8, z=[None, *[1.0] * 7]), "a value that is not a finite number"),
    ("a.parquet", parquet(x=pyarrow.array([], pyarrow.float64())), "has float64 of shape [0, 1]"),
]


@pytest.mark.parametrize(("name", "write", "words"), WRONG_FILES, ids=range(len(WRONG_FILES)))
def test_a_wrong_file_is_named_with_its_row(
    tmp_path: Path, name: str, write: Callable[[Path], None], words: str
) -> None:
    write(tmp_path / name)
    SIGNAL_FILES["npy"](tmp_path / "good.npy", SIGNAL)
    write_jsonl(tmp_path, [{"id": n, "series": file, "split": "train"} for n, file in enumerate(("good.npy", name))])
    source = opened(tmp_path)
    bad = check_examples(
        source, examples=source.examples("train"), modalities=("series",), windows={"series": Window(8, 3)}
    )
    assert bad.keys() == {"1"}
    assert words in bad["1"] and f"{tmp_path / 'table.jsonl'}: row 2: the s" in bad["1"] and name in bad["1"]
    assert bad["1"].isprintable()


LISTED = SIGNAL.tolist()
WRONG_CELLS: list[tuple[Any, str]] = [
    ([*LISTED[:-1], LISTED[-1][:2]], "is ragged"),
    ([[1, None], [2, 3]], "has object of shape [2, 2]"),
    ([["a"], ["b"]], "has <U1 of shape [2, 1]"),
    ([[]], "of shape [1, 0]"),
    ([LISTED], "of shape [1, 8, 3]"),
    ([[True]], "has bool"),
    (["a.npy"], "has <U5 of shape [1]"),
    (7, "is 7, not a path"),
    ({"x": [1]}, "not a path"),
    ("missing.npy", "missing.npy of `series` is missing"),
    ("../a.npy", "is no path below data.root"),
    ("a.mat", "ends with none of .npy, .csv, .parquet"),
    ("Golf GTI", "or leave the column out: data.columns.series=null"),
]


@pytest.mark.parametrize(("cell", "words"), WRONG_CELLS, ids=range(len(WRONG_CELLS)))
def test_a_wrong_cell_is_named_when_the_table_is_opened(tmp_path: Path, cell: Any, words: str) -> None:
    write_jsonl(tmp_path, [{"series": LISTED}, {"series": cell}])
    with pytest.raises(DataError) as caught:
        opened(tmp_path)
    message = str(caught.value)
    assert words in message and "table.jsonl: row 2: " in message and " -> " in message and message.isprintable()


def test_numbers_that_are_missing_in_a_parquet_cell_are_not_finite(tmp_path: Path) -> None:
    rows = [{"series": [[1.0, None]] * 8, "split": "train"}, {"series": [[1.0, 2.0], None], "split": "train"}]
    write_parquet(tmp_path, rows[:1])
    source = opened(tmp_path)
    (problem,) = check_examples(source, examples=source.examples("train"), modalities=("series",)).values()
    assert "row 1: the series (8 x 2 numbers, sha256 " in problem and "not a finite number" in problem
    write_parquet(tmp_path, rows)
    with pytest.raises(DataError, match="row 2: `series` is ragged"):
        opened(tmp_path)


def test_parquet_s_types_of_lists_are_all_read(tmp_path: Path) -> None:
    for kind in (
        pyarrow.list_(pyarrow.list_(pyarrow.float32())), pyarrow.large_list(pyarrow.list_(pyarrow.float64())),
        pyarrow.list_(pyarrow.list_(pyarrow.float32(), 3)), pyarrow.list_(pyarrow.list_(pyarrow.float32(), 3), 8),
    ):  # fmt: skip
        lacking = None if not pyarrow.types.is_fixed_size_list(kind) else LISTED  # Arrow reads no null of such a list
        column = pyarrow.array([LISTED, lacking, LISTED[::-1]], kind)
        table = pyarrow.table({"id": [1, 2, 3], "split": ["train"] * 3, "text": ["t"] * 3, "series": column})
        pyarrow.parquet.write_table(table, tmp_path / "table.parquet")
        source = opened(tmp_path)
        first, second, third = source.examples("train")
        assert np.array_equal(source.series(first, "series"), SIGNAL)
        assert ("series" in second.lacks) == (lacking is None)
        assert np.array_equal(source.series(third, "series"), SIGNAL[::-1])


def test_a_wrong_signal_may_be_skipped(tmp_path: Path) -> None:
    SIGNAL_FILES["npy"](tmp_path / "nan.npy", NAN)
    write_jsonl(tmp_path, [{"series": name, "split": "train"} for name in ("nan.npy", "gone.npy")])
    source = opened(tmp_path, on_bad_example="skip")
    bad = check_examples(source, examples=source.examples("train"), modalities=("series",))
    assert bad.keys() == {"nan.npy", "gone.npy"} and f"there is no signal {tmp_path / 'gone.npy'}" in bad["gone.npy"]


def encoders(*sensors: str) -> dict[str, Any]:
    return {sensor: {"family": "timeseries", "blocks_per_stage": 1, "config": CONFIG} for sensor in sensors}


def planned(columns: dict[str, Any]) -> dict[str, Any]:
    """Returns the data's part of a plan."""
    values = {
        "stages": {"rounds": [1, 1]},
        "data": {"source": "table", "root": "/x", "columns": columns},
        "model": {"encoders": encoders("gyroscope", "series")},
    }
    plan = plan_stages(build_spec(values), depths={"gyroscope": 2, "series": 2})[0]
    found: dict[str, Any] = json.loads(plan.model_dump_json())["data"]["columns"]
    return found


def test_a_plan_that_names_no_such_column_is_as_it_was_before() -> None:
    assert planned({}).keys() == {"id", "image", "text", "audio", "label", "site", "split"}
    assert planned({"gyroscope": "g"}).keys() - planned({}).keys() == {"gyroscope"}
    assert planned({"series": None})["series"] is None
