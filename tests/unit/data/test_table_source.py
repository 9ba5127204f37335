"""Laws of people's own tables: the three formats say the same, and whatever is wrong is named with its row."""

from __future__ import annotations

import builtins
import os
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from pydantic import ValidationError

from lwfed.data.batches import check_examples
from lwfed.data.digests import FileDigests, changed_files, list_files, version_of
from lwfed.data.protocol import Example, open_source
from lwfed.data.sources.table import Rows
from lwfed.round.evaluate import first_alike
from lwfed.spec.data import DataSpec
from lwfed.types.errors import DataError, LwfedError, SpecError
from lwfed.types.modalities import of_kind
from tests.e2e import own_data
from tests.tables import WRITERS, write_csv, write_jsonl, write_parquet

ROWS: list[dict[str, Any]] = [
    {"image": "b.png", "text": "a bee", "label": "bee", "site": "north", "split": "train"},
    {"image": "a.png", "text": "an ant", "label": "ant", "site": "south", "split": "train"},
    {"image": "b.png", "text": "another  word", "label": "bee", "site": "north", "split": "train"},
    {"image": "in/c.png", "text": "a cat", "label": "cat", "site": "south", "split": "test"},
]
"""Three pictures; b.png has two captions."""
SENSORS = {*of_kind("series")}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    for n, name in enumerate(("a.png", "b.png", "in/c.png")):
        Image.new("RGB", (8, 8), (n * 40, 90, 10)).save(tmp_path / name)
    return tmp_path


def opened(root: Path, **keys: Any) -> Rows:
    source = open_source(DataSpec.model_validate({"source": "table", "root": str(root), **keys}))
    assert isinstance(source, Rows)
    return source


def by_id(source: Rows) -> dict[str, Example]:
    return {e.id: e for split in ("train", "validation", "test") for e in source.examples(split)}


def refused(root: Path, *words: str, kind: type[LwfedError] = DataError, **keys: Any) -> None:
    with pytest.raises(kind) as caught:
        opened(root, **keys)
    message = str(caught.value)
    assert all(word in message for word in words) and " -> " in message and message.isprintable(), message


@pytest.mark.parametrize("kind", WRITERS)
def test_all_formats_say_the_same(root: Path, kind: str) -> None:
    WRITERS[kind](root, ROWS)
    source = opened(root)
    assert [e.id for e in source.examples("train")] == ["a.png", "b.png"]
    (test,) = source.examples("test")
    assert test == Example(
        id="in/c.png", label=2, captions=("a cat",), lacks=tuple(sorted({"audio", *SENSORS})),
        fields={"stem": "c", "class": "cat", "site": "south"}, items={"image": "in/c.png"},
    )  # fmt: skip
    assert by_id(source)["b.png"].captions == ("a bee", "another word")
    assert source.classes == ("ant", "bee", "cat") and source.examples("validation") == ()
    assert source.files["in/c.png"] == ("in/c.png",) and source.left_out() == {}
    assert source.image(test).size == (8, 8)
    (root / f"table.{kind}").unlink()
    write_csv(root, ROWS)
    assert opened(root).version() == source.version()


def test_the_version_is_of_what_the_table_says_and_of_the_files(root: Path) -> None:
    write_csv(root, ROWS)
    source = opened(root)

    def version() -> str:
        data = opened(root)
        return version_of(data, list_files(data, FileDigests()))

    before = version()
    write_csv(root, [ROWS[1], ROWS[3], ROWS[0], ROWS[2]])
    assert version() == before, "the order of examples does not matter"
    for key in ("text", "label", "site", "split"):
        write_csv(root, [*ROWS[:3], {**ROWS[3], key: "validation" if key == "split" else "other"}])
        assert version() != before, key
    write_csv(root, ROWS)
    listing = list_files(source, FileDigests())
    Image.new("RGB", (8, 8), (1, 2, 3)).save(root / "a.png")
    assert version() != before
    assert changed_files(source, source.examples("train"), listing=listing, digests=FileDigests()) == {"a.png": "a.png"}


def test_ids_join_rows_and_lists_are_captions(root: Path) -> None:
    rows = [
        {"id": 7, "image": "a.png", "text": ["one", "two"], "speaker": 3.0},
        {"id": 7, "image": "a.png", "text": "three", "speaker": 3},
        {"id": "x", "image": "a.png", "text": "one", "speaker": None},
    ]
    write_jsonl(root, rows)
    found = by_id(opened(root))
    assert found["7"].captions == ("one", "two", "three") and found["7"].fields["speaker"] == "3"
    assert "speaker" not in found["x"].fields and found["x"].captions == ("one",)
    source = opened(root)
    assert not source.examples("test"), "one picture, one side"
    assert first_alike([found["7"], found["x"]], "image").tolist() == [0, 0]
    assert {*changed_files(source, list(found.values()), listing={}, digests=FileDigests())} == {"7", "x"}


def test_columns_have_any_name_and_null_leaves_one_out(root: Path) -> None:
    rows = [{"Picture": r["image"], "caption": r["text"], "label": r["label"], "day": "mon"} for r in ROWS]
    write_csv(root, rows)
    source = opened(root, columns={"image": "Picture", "text": "caption", "label": None})
    example = by_id(source)["b.png"]
    assert example.captions == ("a bee", "another word") and source.classes == () and example.label is None
    assert example.fields == {"stem": "b", "label": "bee", "day": "mon"}


def test_a_further_column_that_differs_among_an_example_s_rows_is_no_field_of_it(root: Path) -> None:
    write_csv(root, [{**row, "number": n, "day": "mon"} for n, row in enumerate(ROWS)])
    found = by_id(opened(root))
    assert found["b.png"].fields.keys() == {"stem", "class", "site", "day"}
    assert found["a.png"].fields["number"] == "1"


def test_an_empty_cell_is_a_modality_that_is_lacking(root: Path) -> None:
    own_data.write_advance(root / "sounds", pairs=1)
    sound = "sounds/sound/sea/0_sea.wav"
    rows = [
        {"id": "all", "image": "a.png", "text": "t", "audio": sound},
        {"id": "picture", "image": "b.png", "text": " ", "audio": None},
        {"id": "told", "image": float("nan"), "text": "t", "audio": ""},
    ]
    write_jsonl(root, rows)
    source = opened(root)
    found = by_id(source)
    lacks = [tuple(m for m in found[name].lacks if m not in SENSORS) for name in ("all", "picture", "told")]
    assert lacks == [(), ("audio", "text"), ("audio", "image")]
    assert all({*example.lacks} >= SENSORS for example in found.values())
    assert source.files == {"all": ("a.png", sound), "picture": ("b.png",), "told": ()}
    assert check_examples(source, examples=list(found.values()), modalities=("audio", "image", "text")) == {}
    (root / "b.png").write_bytes(b"no picture")
    assert check_examples(source, examples=list(found.values()), modalities=("image",)).keys() == {"picture"}
    with pytest.raises(DataError, match="told has no image"):
        source.image(found["told"])


def test_without_a_column_whole_pictures_are_held_out_by_class(root: Path) -> None:
    rows = []
    for n in range(20):
        Image.new("RGB", (4, 4), (n, n, n)).save(root / f"{n}.png")
        rows += [{"id": f"{n}-{k}", "image": f"{n}.png", "text": "t", "label": n % 2} for k in range(3)]
    write_jsonl(root, rows)
    source = opened(root, test_fraction=0.3)
    test = {e.id for e in source.examples("test")}
    pictures = {name.partition("-")[0] for name in test}
    assert len(pictures) == 6 and len(test) == 18 and sum(int(name) % 2 for name in pictures) == 3
    write_jsonl(root, rows[::-1])
    assert {e.id for e in opened(root, test_fraction=0.3).examples("test")} == test


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        ([10, 9, "-1"], ("-1", "9", "10")),
        (["10", "9", "b"], ("10", "9", "b")),
        ([True, False, True], ("false", "true")),
        ([2.0, 10.0, 1], ("1", "2", "10")),
    ],
)
def test_classes_are_sorted_by_value_or_by_letters(root: Path, labels: list[Any], classes: tuple[str, ...]) -> None:
    write_jsonl(root, [{"image": name, "label": v} for name, v in zip(("a.png", "b.png", "in/c.png"), labels)])  # noqa: B905
    assert opened(root).classes == classes


def test_classes_may_be_given(root: Path) -> None:
    write_csv(root, ROWS)
    given = opened(root, classes=["zebra", "cat", "bee", "ant"])
    assert given.classes == ("zebra", "cat", "bee", "ant") and by_id(given)["in/c.png"].label == 1
    assert given.version() != opened(root).version()
    refused(root, "table.csv: row 5: `label` is 'cat'", "did you mean cats?", classes=["ant", "bee", "cats"])


def test_what_is_left_out_is_counted(root: Path) -> None:
    rows = [*ROWS, {}, ROWS[1], {"label": "ant"}, {"image": "a.png", "text": "unlabelled"}, {"id": ""}]
    write_jsonl(root, [{k: v for k, v in row.items() if k != "split"} for row in rows])
    (root / ".hidden").touch()
    (root / "in/unused.png").touch()
    (root / "notes.txt").touch()
    Image.new("RGB", (4, 4)).save(root / "x.png")
    refused(root, "row 7 has no image, text, sound or series", "on_bad_example=skip", columns={"id": None})
    source = opened(root, on_bad_example="skip", columns={"id": None})
    assert source.left_out() == {
        "empty rows": 2, "repeated captions": 1, "rows without image, text, sound and series": 1,
        "rows without a label": 1, "hidden files": 1, "files that no row names": 2, "files with other endings": 1,
    }  # fmt: skip
    write_jsonl(root, [{"image": "a.png"}, {"image": "a.png"}, {"image": "b.png", "text": ["x", " ", "x"]}])
    left = opened(root).left_out()
    assert left.items() >= {"repeated rows": 1, "blank captions": 1, "repeated captions": 1}.items()


GOOD = {"image": "a.png", "text": "t", "label": "x", "split": "train"}
WRONG: list[tuple[list[dict[str, Any]], tuple[str, ...], dict[str, Any]]] = [
    ([{**GOOD, "image": "z.png"}], ("row 1: the file", "z.png of `image` is missing"), {}),
    ([GOOD, {**GOOD, "image": "A.png"}], ("row 2", "a.png there differs in upper and lower case"), {}),
    ([GOOD, {**GOOD, "image": "in\\c.png"}], ("row 2", "write / in place of"), {}),
    ([GOOD, {**GOOD, "image": "in"}], ("row 2", "is missing"), {}),
    ([{**GOOD, "image": "/etc/passwd"}], ("row 1: `image`, '/etc/passwd', is no path below data.root",), {}),
    ([{**GOOD, "image": "../a.png"}], ("row 1", "is no path below data.root"), {}),
    ([{**GOOD, "image": "in/../a.png"}], ("row 1", "is no path below data.root"), {}),
    ([{**GOOD, "image": "C:\\a.png"}], ("row 1", "is no path below data.root"), {}),
    ([{**GOOD, "image": "https://x.org/a.png"}], ("row 1", "URI", "download"), {}),
    ([{**GOOD, "image": "a\0.png"}], ("row 1", "is no path"), {}),
    ([{**GOOD, "image": 7}], ("row 1: `image` is 7, not a path",), {}),
    ([{**GOOD, "image": {"bytes": "x"}}], ("row 1: `image` is", "not a path"), {}),
    ([{**GOOD, "text": 7}], ("row 1: `text` has 7, not a text",), {}),
    ([{**GOOD, "text": ["a", None]}], ("row 1: `text` has an empty cell",), {}),
    ([{**GOOD, "label": 0.5}], ("row 1: `label` is 0.5, not a word or an integer",), {}),
    ([{**GOOD, "label": ["x"]}], ("row 1: `label` is ['x']",), {}),
    ([GOOD, {**GOOD, "image": "b.png", "label": ""}], ("row 2 has no label in `label`", "columns.label=null"), {}),
    ([{**GOOD, "split": "valid"}], ("row 1: `split` is 'valid'; did you mean validation?",), {}),
    ([{**GOOD, "split": "Train"}], ("did you mean train?", "train, validation, test"), {}),
    ([GOOD, {**GOOD, "split": ""}], ("row 2 has no split in `split`", "columns.split=null"), {}),
    ([{**GOOD, "id": "i"}, GOOD], ("row 2 has no id in `id`",), {}),
    ([{**GOOD, "id": [1]}], ("row 1: `id` is [1], not a text or a number",), {}),
    ([GOOD, {**GOOD, "label": "y"}], ("rows 1 and 2", "'a.png'", "`label`: 'x' and 'y'", "add a column `id`"), {}),
    (
        [{**GOOD, "id": "i"}, {**GOOD, "id": "i", "image": "b.png"}],
        ("rows 1 and 2 have one id, 'i', and differ in `image`: 'a.png' and 'b.png'", "different ids"),
        {},
    ),
    ([{**GOOD, "text": "\ud83d"}], ("row 1: `text` has half of a surrogate pair",), {}),
    ([GOOD], ("no column tex for data.columns.text; did you mean text?",), {"columns": {"text": "tex"}}),
    ([GOOD], ("no column Label for data.columns.label; did you mean label?",), {"columns": {"label": "Label"}}),
    (
        [{"img": "a.png"}],
        ("none of the columns image, text, audio, series, accelerometer, gyroscope; it has: img", "columns.image=img"),
        {},
    ),
    ([{"label": "x"}, {}], ("none of the columns",), {}),
    ([{}, {}], ("table.jsonl has no rows",), {}),
    ([{"image": "", "label": "x"}], ("row 1 has no image, text, sound or series",), {}),
    ([GOOD], ("there is no table", "data.table"), {"table": "other.csv"}),
    ([GOOD], ("table.jsonl is there",), {"table": "table.csv"}),
]


@pytest.mark.parametrize(("rows", "words", "keys"), WRONG, ids=range(len(WRONG)))
def test_a_wrong_row_is_named(
    root: Path, rows: list[dict[str, Any]], words: tuple[str, ...], keys: dict[str, Any]
) -> None:
    write_jsonl(root, rows)
    refused(root, *words, **keys)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("table.csv", b"", ("is empty",)),
        ("table.csv", b"image,text\n", ("has no rows",)),
        ("table.csv", b"image,text\na.png\n", ("row 2 has 1 cells and the header 2",)),
        ("table.csv", b"image,text\na.png,t\nb.png,one, two\n", ("row 3 has 3 cells", "quote")),
        ("table.csv", b"image,,text\na.png,,t\n", ("column 2 of 3 has no name",)),
        ("table.csv", b"image,text,image\na.png,t,b.png\n", ("the column image twice",)),
        ("table.csv", b"image;text\na.png;t\n", ("no comma, but a semicolon", 'data.delimiter to ";"')),
        ("table.csv", b"image\ttext\na.png\tt\n", ("no comma, but a tab", 'data.delimiter to "\\t"')),
        ("table.csv", b'image,text\na.png,"t\nb.png,u\n', ("from line 2 on",)),
        ("table.csv", b'image,text\na.png,"t"u\n', ("is not CSV: from line 2",)),
        ("table.csv", "image,text\na.png,é\n".encode("latin-1"), ("is not UTF-8: line 2 has the byte 0xe9", "iconv")),
        ("table.csv", "image,text\na.png,t\n".encode("utf-16"), ("UTF-16",)),
        ("table.csv", "image,text\na.png,t\n".encode("utf-16-le"), ("NUL bytes or is UTF-16",)),
        ("table.csv", b"\x1f\x8bxxxx", ("is compressed",)),
        ("table.jsonl", b"[]", ("JSON list",)),
        ("table.jsonl", b'{"image": "a.png"}\n7\n', ("row 2 is no object",)),
        ("table.jsonl", b'{"image": "a.png"}\n\n{"image": "a.png"\n', ("row 3 is not JSON",)),
        ("table.jsonl", b'{"image": "a.png", "image": "b.png"}', ("row 1 has the key 'image' twice",)),
        ("table.jsonl", b'{"image": ' + b"[" * 100_000, ("row 1 is nested too deeply",)),
        ("table.jsonl", b'{"": 1}', ("a key that is blank",)),
        ("table.parquet", b"PAR1", ("is no Parquet table",)),
        ("table.parquet", b"image,text\n", ("is no Parquet table",)),
    ],
)
def test_a_damaged_file_is_named(root: Path, name: str, content: bytes, words: tuple[str, ...]) -> None:
    (root / name).write_bytes(content)
    refused(root, name, *words)


def test_marks_delimiters_and_line_ends_are_read(root: Path) -> None:
    wanted = by_id(opened_csv(root, "image,text\na.png,one\n"))
    for content in (
        "\ufeffimage,text\na.png,one\n", "image,text\r\na.png,one\r\n\r\n", ' image , text \n "a.png"," one "\n',
    ):  # fmt: skip
        assert by_id(opened_csv(root, content.replace(' "a', '"a'))) == wanted
    assert by_id(opened_csv(root, "image;text\na.png;one\n", delimiter=";")) == wanted
    (root / "table.csv").rename(root / "my.tsv")
    (root / "my.tsv").write_text("image\ttext\na.png\tone\n")
    assert by_id(opened(root, table="my.tsv")) == wanted
    quoted = opened_csv(root, 'image,text\na.png,"one\nline, ""more"""\n', table="table.csv")
    assert by_id(quoted)["a.png"].captions == ('one line, "more"',)


def opened_csv(root: Path, content: str, **keys: Any) -> Rows:
    (root / "table.csv").write_bytes(content.encode())
    return opened(root, **keys)


def test_one_table_is_needed(root: Path) -> None:
    refused(root, "no table.csv, no table.tsv, no table.jsonl, no table.parquet")
    write_csv(root, ROWS, "birds.csv")
    refused(root, "it has birds.csv", "data.table")
    assert len(by_id(opened(root, table="birds.csv"))) == 3
    write_csv(root, ROWS)
    write_jsonl(root, ROWS)
    refused(root, "has table.csv and table.jsonl", "data.table")
    assert len(by_id(opened(root, table="table.jsonl"))) == 3


@pytest.mark.skipif(os.getuid() == 0, reason="root reads everything")
def test_a_table_that_may_not_be_read_is_named(root: Path) -> None:
    write_csv(root, ROWS)
    (root / "table.csv").chmod(0)
    refused(root, "table.csv", "cannot be read")


def test_parquet_without_pyarrow_is_an_error(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_parquet(root, ROWS)
    real = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name.startswith("pyarrow"):
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    refused(root, "pyarrow is not installed", ".jsonl")


def test_missing_files_are_skipped_if_the_spec_says_so(root: Path) -> None:
    write_jsonl(root, [GOOD, {**GOOD, "image": "z.png"}])
    source = opened(root, on_bad_example="skip")
    bad = check_examples(source, examples=source.examples("train"), modalities=("image", "text"))
    assert bad == {"z.png": f"there is no image {root / 'z.png'}"}


def test_validation_rows_are_the_source_s_own(root: Path) -> None:
    write_csv(root, [*ROWS[:3], {**ROWS[3], "split": "validation"}])
    assert [e.id for e in opened(root).examples("validation")] == ["in/c.png"]
    refused(root, "data.validation_fraction", kind=SpecError, validation_fraction=0.2)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"table": "../t.csv"}, "below `data.root`"),
        ({"table": "/t.csv"}, "below `data.root`"),
        ({"table": " "}, "below `data.root`"),
        ({"table": "t.xlsx"}, ".parquet"),
        ({"delimiter": ""}, "data.delimiter"),
        ({"delimiter": "ab"}, "data.delimiter"),
        ({"delimiter": '"'}, "data.delimiter"),
        ({"classes": []}, "data.classes"),
        ({"classes": ["a", " "]}, "data.classes"),
        ({"classes": ["a", "a"]}, "twice"),
        ({"columns": {"image": " "}}, "data.columns.image"),
        ({"columns": {"image": "x", "text": "x"}}, "`data.columns.image` and `data.columns.text` are both x"),
        ({"columns": {"image": "label"}}, "are both label"),
        ({"columns": {"picture": "x"}}, "picture"),
        ({"test_fraction": 0}, "test_fraction"),
    ],
)
def test_a_wrong_key_is_refused_before_any_work(root: Path, keys: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError) as caught:
        DataSpec.model_validate({"source": "table", "root": str(root), **keys})
    assert words in str(caught.value)
